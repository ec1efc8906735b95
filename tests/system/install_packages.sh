#!/usr/bin/env bash
# Installs the system packages that tests need (packages.txt), as root or by `sudo -n`, and says what is missing after that.
# It always succeeds, since tests skip where a program is missing. With --check it installs nothing, and fails if any is missing.
set -uo pipefail
list="$(dirname "$0")/packages.txt"

missing() {
    while read -r package program _; do
        case "$package" in '' | '#'*) continue ;; esac
        command -v "$program" >/dev/null || echo "$package"
    done <"$list"
}

mapfile -t wanted < <(missing)
if [ "${1:-}" = --check ]; then
    [ "${#wanted[@]}" = 0 ]
    exit
fi
[ "${#wanted[@]}" = 0 ] && exit 0

if [ "$(id -u)" = 0 ]; then become=(); else become=(sudo -n); fi
apt=("${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
if ! command -v apt-get >/dev/null; then
    echo "No apt-get here: system packages are not installed." >&2
elif [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
    echo "Neither root nor sudo without a password: system packages are not installed." >&2
else
    echo "Installing ${wanted[*]}" >&2
    "${apt[@]}" update >&2
    # One name that this system does not know must not keep the others away.
    "${apt[@]}" install -y "${wanted[@]}" >&2 || for package in "${wanted[@]}"; do "${apt[@]}" install -y "$package" >&2; done
fi

mapfile -t left < <(missing)
if [ "${#left[@]}" != 0 ]; then
    echo "Tests that need them will skip: ${left[*]}. To install them: sudo apt-get install ${left[*]}" >&2
fi
exit 0
