"""The filter of system calls: what a program has no business with, most of all what could hold memory unseen.

A classic BPF program as bubblewrap's --seccomp takes it. Numbers are those of the kernel's tables
(arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h for aarch64).
"""

import errno
import functools
import platform
import struct

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
"""AUDIT_ARCH_*: a call by another ABI (i386's) ends the process."""

DENIED = {
    # name: (x86_64, aarch64)
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "vmsplice": (278, 75),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "fanotify_init": (300, 262),
    "inotify_init": (253, 26), "inotify_init1": (294, 26), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "open_by_handle_at": (304, 265),
    "personality": (135, 92), "syslog": (103, 116), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "quotactl": (179, 60), "reboot": (169, 142),
}  # fmt: skip
CLONE, CLONE3, SOCKET, SIGACTION = (56, 220), (435, 435), (41, 198), (13, 134)
SIGCHLD = 17
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
X32 = 0x40000000
AF_UNIX = 1

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in struct seccomp_data; an argument's lower half, its upper one 4 behind it."""
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def _deny(number: int) -> int:
    return 0x00050000 | number


@functools.cache
def program(machine: str = platform.machine()) -> bytes:
    """The filter of a machine: an array of struct sock_filter."""
    column = ("x86_64", "aarch64").index(machine)
    code = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, (X86_64, AARCH64)[column]), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, X32), (_RETURN, 0, 0, _deny(errno.ENOSYS)),
    ]  # fmt: skip
    for numbers in DENIED.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _deny(errno.EPERM))]
    # C libraries fall back from clone3, whose flags a filter cannot see, to clone.
    code += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _deny(errno.ENOSYS))]
    # Whoever ignored SIGCHLD would have children whose processor time nobody is told of: what it is set to is passed
    # over, so that children are waited for, or stay to be seen.
    code += [
        (_EQUAL, 0, 8, SIGACTION[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 0, 5, SIGCHLD),
        (_LOAD, 0, 0, _SECOND_ARGUMENT), (_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, _SECOND_ARGUMENT + 4), (_EQUAL, 1, 0, 0),  # a null pointer asks what it is set to
        (_RETURN, 0, 0, _deny(0)), (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    code += [
        (_EQUAL, 0, 4, CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, NEW_NAMESPACES),
        (_RETURN, 0, 0, _deny(errno.EPERM)), (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 3, SOCKET[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, AF_UNIX),
        (_RETURN, 0, 0, _deny(errno.EACCES)), (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
