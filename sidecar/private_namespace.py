"""A program that gives a command a mount namespace of its own, and becomes it.

    python private_namespace.py --address 127.66.0.1 --host NAME… --ca FILE [--bundle FILE…] -- COMMAND…
    python private_namespace.py --probe …

In the namespace `/etc/hosts` leads the hosts to the address, and the bundles have the certificate of FILE
too; outside nothing changes (mount_namespaces(7)). It needs CAP_SYS_ADMIN, or else user namespaces that
anybody may make: there the user stays who he is (user_namespaces(7)).

The command has the process id, the signals and the exit code of this program. `--probe` does all but the
command: exit 0, or 1 with the reason on stderr. It runs alone, on the standard library: it starts fast.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
HOSTS = "/etc/hosts"


def hosts_file(original: str, address: str, hosts: list[str]) -> str:
    """`original` with the hosts at `address`, and nowhere else. Names are compared without case."""
    ours = {host.lower() for host in hosts}
    kept = []
    for line in original.splitlines():
        words = line.partition("#")[0].split()
        names = [name for name in words[1:] if name.lower() not in ours]
        if len(names) == len(words[1:]):
            kept.append(line)
        elif names:
            kept.append(" ".join([words[0], *names]))
    return "\n".join([*kept, *(f"{address} {host}" for host in hosts), ""])


def enter(address: str, hosts: list[str], ca: str, bundles: list[str]) -> None:
    """Moves this process into a namespace of its own, furnished. Raises `OSError`."""
    changed = {HOSTS: hosts_file(Path(HOSTS).read_text(), address, hosts).encode()}
    certificate = Path(ca).read_bytes()
    for bundle in bundles:
        text = Path(bundle).read_bytes()
        if certificate not in text:
            changed[bundle] = text.rstrip(b"\n") + b"\n" + certificate
    _unshare()
    _mount("none", "/", MS_REC | MS_PRIVATE)
    for target, content in changed.items():
        descriptor, source = tempfile.mkstemp(prefix="sidecar-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o644)
            _mount(source, target, MS_BIND)
        finally:
            Path(source).unlink()  # the mount keeps it, and it ends with the namespace


_libc = ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    """Raises `OSError`."""
    if _libc.unshare(CLONE_NEWNS) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        raise _error("unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)


def _mount(source: str, target: str, flags: int) -> None:
    """Raises `OSError`."""
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None) != 0:
        raise _error(f"mount on {target}")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--address", required=True)
    parser.add_argument("--host", action="append", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--bundle", action="append", default=[])
    parser.add_argument("--probe", action="store_true")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:end])
    command = sys.argv[end + 1 :]
    try:
        enter(arguments.address, arguments.host, arguments.ca, arguments.bundle)
    except (OSError, AttributeError) as error:  # AttributeError: no Linux
        reason = error.strerror if isinstance(error, OSError) else "this system has no mount namespaces"
        if arguments.probe:
            print(reason, file=sys.stderr)
            return 1
        print(f"sidecar: no private namespace after all, the app starts without: {reason}", file=sys.stderr)
    if arguments.probe:
        return 0
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command, and no shell wanted
    except OSError as error:
        print(f"sidecar: {command[0]}: {error.strerror}; is the command right?", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
