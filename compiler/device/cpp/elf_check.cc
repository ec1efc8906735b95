#include "elf_check.h"

#include <elf.h>
#include <link.h>

#include <cstring>

namespace tensorwright {
namespace {

#if defined(__x86_64__)
constexpr unsigned kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr unsigned kMachine = EM_AARCH64;
#elif defined(__riscv)
constexpr unsigned kMachine = EM_RISCV;
#elif defined(__arm__)
constexpr unsigned kMachine = EM_ARM;
#else
#error "no ELF machine is known for this architecture"
#endif

constexpr unsigned char kClass = sizeof(void*) == 8 ? ELFCLASS64 : ELFCLASS32;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
constexpr unsigned char kOrder = ELFDATA2LSB;
#else
constexpr unsigned char kOrder = ELFDATA2MSB;
#endif

[[noreturn]] void Broken() { throw Error("the module's machine code is not a complete ELF shared library", "export the module again"); }

bool Lies(uint64_t start, uint64_t size, uint64_t room) { return start <= room && size <= room - start; }

template <typename T>
T ReadAt(Span file, uint64_t offset) {
  if (!Lies(offset, sizeof(T), file.size)) Broken();
  T value;
  std::memcpy(&value, file.data + offset, sizeof value);
  return value;
}

void CheckSegments(Span library, const ElfW(Ehdr) & header) {
  bool loads = false;
  for (size_t i = 0; i < header.e_phnum; ++i) {
    auto segment = ReadAt<ElfW(Phdr)>(library, header.e_phoff + i * sizeof(ElfW(Phdr)));
    if (!Lies(segment.p_offset, segment.p_filesz, library.size)) Broken();
    if (segment.p_type != PT_LOAD) continue;
    loads = true;
    bool overflows = segment.p_vaddr + segment.p_memsz < segment.p_vaddr;
    if (segment.p_filesz > segment.p_memsz || overflows) Broken();
  }
  if (!loads) Broken();
}

void CheckSections(Span library, const ElfW(Ehdr) & header) {
  if (header.e_shnum == 0) return;
  if (header.e_shentsize != sizeof(ElfW(Shdr))) Broken();
  for (size_t i = 0; i < header.e_shnum; ++i) {
    auto section = ReadAt<ElfW(Shdr)>(library, header.e_shoff + i * sizeof(ElfW(Shdr)));
    if (section.sh_type != SHT_NULL && section.sh_type != SHT_NOBITS && !Lies(section.sh_offset, section.sh_size, library.size)) Broken();
  }
}

}  // namespace

void CheckElf(Span library) {
  auto header = ReadAt<ElfW(Ehdr)>(library, 0);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != kClass || header.e_ident[EI_DATA] != kOrder ||
      header.e_type != ET_DYN) {
    Broken();
  }
  if (header.e_machine != kMachine) {
    throw Error("the module's machine code is not for this processor (ELF machine " + std::to_string(header.e_machine) + ")");
  }
  if (header.e_phentsize != sizeof(ElfW(Phdr)) || header.e_phoff > library.size || header.e_shoff > library.size) Broken();
  CheckSegments(library, header);
  CheckSections(library, header);
}

}  // namespace tensorwright
