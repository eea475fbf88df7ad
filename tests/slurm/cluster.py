"""A private SLURM cluster on this machine: three emulated nodes, loopback only, no systemd, nothing outside its folder.

    python tests/slurm/cluster.py start FOLDER     prints what to put into the environment
    python tests/slurm/cluster.py stop FOLDER      ends its processes by their recorded ids

Debian's packages slurmctld, slurmd, slurm-client, slurm-wlm-basic-plugins and munge have to be installed. Processors and memory of a node
are what the configuration says, not what is there. Every daemon's process id is in FOLDER/run, its output in FOLDER/log.
"""

import getpass
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")
SYSTEM = "/usr/sbin:/sbin"
# Memory limits are enforced by looking at a job's processes every two seconds: control groups want a system of their own.
CONFIGURATION = """\
ClusterName=bitplan
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/run/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pidfile
SlurmdPidFile={root}/run/%n.pidfile
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=2
ReturnToService=2
MailProg=/bin/true
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=24:00:00 State=UP
"""


def missing_programs() -> list[str]:
    """Return the programs of SLURM and munge that this machine lacks."""
    places = [Path(place) for place in f"{os.environ['PATH']}:{SYSTEM}".split(":")]
    return [name for name in PROGRAMS if not any((place / name).exists() for place in places)]


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Return as soon as `holds()` is true. Raises `TimeoutError`, which says what was waited for, after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.2)


def _alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def _parent(pid: int) -> int:
    """Return a process's parent. Raises `OSError` when the process has ended."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@dataclass(frozen=True)
class Cluster:
    """A cluster whose files are all below `root` (a short path: sockets have at most 107 characters)."""

    root: Path
    nodes: int = 3
    cpus: int = 4
    memory: int = 9000
    port: int = 26817

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which SLURM's commands speak to this cluster."""
        path = f"{self.root}/bin:{os.environ['PATH']}:{SYSTEM}"
        return {**os.environ, "SLURM_CONF": f"{self.root}/slurm.conf", "PATH": path}

    def ask(self, *command: str, check: bool = True) -> str:
        """Return what one of SLURM's commands answers. Raises `CalledProcessError` where it fails, unless told not to check."""
        made = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=check, timeout=60)
        return made.stdout.strip()

    def _launch(self, name: str, *command: str) -> None:
        """Start a daemon apart from this process and record its id."""
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        (self.root / "run" / f"{name}.pid").write_text(f"{process.pid}\n")

    def _recorded(self, name: str) -> int:
        """Return the id of a daemon; 0 when it was never started or has been ended."""
        path = self.root / "run" / f"{name}.pid"
        return int(path.read_text()) if path.exists() else 0

    def _refuse_taken_ports(self) -> None:
        """Raise `OSError` for a port on which something listens: it may be another cluster of this kind."""
        for port in range(self.port, self.port + self.nodes + 1):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    raise OSError(f"port {port} is taken")

    def _write_files(self) -> None:
        for folder in ("log", "run", "state", "spool", "bin"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        text = CONFIGURATION.format(
            root=self.root,
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            nodes=self.nodes,
            cpus=self.cpus,
            memory=self.memory,
            port=self.port,
            first=self.port + 1,
            last=self.port + self.nodes,
        )
        (self.root / "slurm.conf").write_text(text)
        key = self.root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        # The plugin takes SLURM_CONF out of srun's environment in a job. A real cluster's configuration is found in /etc without it.
        srun = self.root / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={shlex.quote(str(self.root / "slurm.conf"))} exec /usr/bin/srun "$@"\n')
        srun.chmod(0o755)

    def start(self) -> None:
        """Start munged, the controller and the nodes. Raises `TimeoutError` for what doesn't come up; its log says why.

        Raises `OSError` for a taken port.
        """
        self._refuse_taken_ports()
        self._write_files()
        run, log = self.root / "run", self.root / "log"
        socket_path = run / "munge.socket"
        files = {"socket": socket_path, "key-file": self.root / "munge.key", "pid-file": run / "munged.pidfile"}
        files |= {"log-file": log / "munged.log", "seed-file": run / "munged.seed"}
        # --force: the folder may lie below one that everybody can write to.
        self._launch(
            "munged", "munged", "--foreground", "--force", *(f"--{flag}={path}" for flag, path in files.items())
        )
        wait_until(lambda: socket_path.exists(), 10, "munged")
        self.start_controller()
        for number in range(1, self.nodes + 1):
            self.start_node(f"n{number}")
        wait_until(lambda: self.states() == ["idle"] * self.nodes, 30, "nodes")

    def states(self) -> list[str]:
        """Return the state of each node, as sinfo names it."""
        return self.ask("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()

    def start_controller(self) -> None:
        """Start slurmctld, which goes on with the jobs that it knew."""
        self._launch("slurmctld", "slurmctld", "-D")
        wait_until(lambda: " is UP" in self.ask("scontrol", "ping", check=False), 30, "slurmctld")

    def stop_controller(self) -> None:
        """End slurmctld; jobs go on without it."""
        self._end("slurmctld")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        self._launch(name, "slurmd", "-D", "-N", name)

    def processes(self, node: str) -> list[int]:
        """Return the processes of a node's jobs by SLURM's own list, and the slurmstepd above each."""
        jobs = self.ask("squeue", "--noheader", f"--nodelist={node}", "--format=%i").split()
        lines = [line.split() for job in jobs for line in self.ask("scontrol", "listpids", job, node).splitlines()[1:]]
        tasks = [int(line[0]) for line in lines]
        return [pid for pid in {*map(_parent, tasks)} if _name(pid) == "slurmstepd"] + tasks

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd and all that its jobs run there, as when its power fails, and tell the controller."""
        _kill([self._recorded(node), *self.processes(node)])
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=killed by a test")

    def _end(self, name: str) -> None:
        """End a daemon by its recorded id, at the latest after ten seconds."""
        pid = self._recorded(name)
        if not pid:
            return
        if _alive(pid):
            os.kill(pid, signal.SIGTERM)
        try:
            wait_until(lambda: not _alive(pid), 10, name)
        except TimeoutError:
            _kill([pid])
        (self.root / "run" / f"{name}.pid").unlink()

    def cancel_all(self) -> None:
        """Cancel all jobs and wait for their end. Raises `TimeoutError` for jobs that don't end."""
        self.ask("scancel", "--user", getpass.getuser(), check=False)
        wait_until(lambda: not self.ask("squeue", "--noheader", check=False), 20, "the end of the jobs")

    def stop(self) -> None:
        """Cancel all jobs and end every daemon that was started. Raises `TimeoutError`, daemons ended, for jobs that don't end."""
        try:
            if self._recorded("slurmctld"):
                self.cancel_all()
        finally:
            for name in (*(f"n{number}" for number in range(1, self.nodes + 1)), "slurmctld", "munged"):
                self._end(name)


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    cluster = Cluster(Path(sys.argv[2]).resolve())
    getattr(cluster, sys.argv[1])()
    if sys.argv[1] == "start":
        print(f"export SLURM_CONF={cluster.root}/slurm.conf PATH={cluster.root}/bin:$PATH")


if __name__ == "__main__":
    main()
