"""Exit codes of the command line."""

from __future__ import annotations

from compiler.errors import InternalError, UserError

EXIT_USER_ERROR = UserError.exit_code
EXIT_INTERNAL_ERROR = InternalError.exit_code
EXIT_INTERRUPTED = 130
