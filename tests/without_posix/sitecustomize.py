"""Python without POSIX, for headstart's own files: on PYTHONPATH it gives them only what Windows has, in children too.

Other libraries keep what they need here; on Windows they have ways of their own. multiprocessing loses `fork` and
`forkserver`, and /proc is gone, for everybody.
"""

import builtins
import io
import multiprocessing
import os
import signal
import sys
import types
import warnings
from multiprocessing import context
from pathlib import Path

# fmt: off
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
ABSENT = {  # "Availability: Unix" or "not Windows" in Python's documentation
    "os": {
        "chown", "chroot", "confstr", "copy_file_range", "ctermid", "eventfd", "fchdir", "fchown", "fdatasync",
        "fork", "forkpty", "fpathconf", "fstatvfs", "getegid", "geteuid", "getgid", "getgroups", "getloadavg",
        "getpgid", "getpgrp", "getpriority", "getresgid", "getresuid", "getsid", "getuid", "getxattr",
        "initgroups", "killpg", "lchown", "listxattr", "lockf", "login_tty", "major", "makedev", "memfd_create",
        "minor", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pidfd_open", "pipe2", "posix_fadvise",
        "posix_fallocate", "posix_openpt", "posix_spawn", "posix_spawnp", "pread", "preadv", "pwrite",
        "pwritev", "register_at_fork", "removexattr", "sched_getaffinity", "sched_getparam",
        "sched_getscheduler", "sched_setaffinity", "sched_yield", "sendfile", "set_blocking", "setegid",
        "seteuid", "setgid", "setgroups", "setns", "setpgid", "setpriority", "setregid", "setreuid", "setsid",
        "setuid", "setxattr", "spawnlp", "spawnvp", "splice", "statvfs", "sync", "sysconf", "tcgetpgrp",
        "tcsetpgrp", "timerfd_create", "ttyname", "uname", "unshare", "wait", "wait3", "wait4", "waitid",
        "WNOHANG", "WIFEXITED", "WIFSIGNALED", "WTERMSIG", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW",
        "O_NONBLOCK", "O_SYNC",
    },
    "signal": {
        "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGIO", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGPWR",
        "SIGQUIT", "SIGSTOP", "SIGSYS", "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1",
        "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU", "SIGXFSZ", "alarm", "getitimer", "pause", "pthread_kill",
        "pthread_sigmask", "setitimer", "siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo",
    },
    "sys": set(),
}
# fmt: on
INSTEAD = {"os": {"name": "nt"}, "signal": {}, "sys": {"platform": "win32"}}


class Partial(types.ModuleType):
    """A module as another platform has it."""

    def __init__(self, module: types.ModuleType):
        super().__init__(module.__name__)
        self.__dict__.update(INSTEAD[module.__name__], whole=module)

    def __getattr__(self, name: str):
        if name in ABSENT[self.__name__]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}: blocked")
        return getattr(self.whole, name)


PARTIAL = {module.__name__: Partial(module) for module in (os, signal, sys)}
honest_import, honest_open, honest_low_open, honest_stat = builtins.__import__, io.open, os.open, os.stat


def importing(name, globals=None, locals=None, fromlist=(), level=0):
    """`import` of what the platform has, where the importer is one of headstart's files."""
    if (globals or {}).get("__name__", "").split(".")[0] == "headstart":
        if name.split(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}: blocked", name=name)
        if name in PARTIAL:
            return PARTIAL[name]
    return honest_import(name, globals, locals, fromlist, level)


def hidden(function):
    """A function of a path, for which nothing lies below /proc."""

    def seen(path, *arguments, **options):
        if isinstance(path, str | os.PathLike) and str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory: blocked", str(path))
        return function(path, *arguments, **options)

    return seen


builtins.__import__ = importing
builtins.open = io.open = hidden(honest_open)
os.open, os.stat = hidden(honest_low_open), hidden(honest_stat)
for method in ("fork", "forkserver"):
    del context._concrete_contexts[method]
context._default_context._default_context = context._default_context._actual_context = context.SpawnContext()
multiprocessing.get_all_start_methods = lambda: ["spawn"]
warnings.filterwarnings("ignore", category=EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module="headstart")  # text as the system happens to have it
if log := os.environ.get("WITHOUT_POSIX"):
    Path(log, str(os.getpid())).touch()
