"""The batch job and MPI launch a server is part of.

Covers Slurm, PBS and Torque, LSF, Flux, Grid Engine and the ranks MPI launchers hand out:
what their environment variables tell, and what the system's own command tells of the job.
It does not cover jobs other than this one, nor what the job's environment was (`qstat -f`
and `qstat -j` print it; it holds secrets).

A fact keeps the name its source gives it.  The facts most systems know are given once more
under a common name: `COMMON_NAMES`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recup.capture.command import command_output
from recup.capture.machine import read_text
from recup.capture.provenance import text_source
from recup.capture.redaction import REDACTED, redacted_value
from recup.schema import BatchJob, Source

ENVIRONMENT = "environment"
_VALUE_LIMIT = 65_536
_SLURM_PAIR = re.compile(r"(?:^|(?<=\s))([A-Za-z][\w/:.-]*)=(.*?)(?=\s+[A-Za-z][\w/:.-]*=|$)")
_SLURM_TEXT = re.compile(r"(Command|WorkDir|StdErr|StdIn|StdOut|SubmitLine|Comment|AdminComment|Extra)=(.*)")

COMMON_NAMES = {
    "job_name": ("SLURM_JOB_NAME", "PBS_JOBNAME", "LSB_JOBNAME", "JOB_NAME"),
    "queue": ("SLURM_JOB_PARTITION", "PBS_QUEUE", "LSB_QUEUE", "QUEUE"),
    "account": ("SLURM_JOB_ACCOUNT", "PBS_ACCOUNT", "LSB_PROJECT_NAME", "SGE_ACCOUNT"),
    "node_list": ("SLURM_JOB_NODELIST", "SLURM_NODELIST", "LSB_MCPU_HOSTS", "LSB_HOSTS"),
    "node_count": ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "PBS_NUM_NODES", "FLUX_JOB_NNODES", "NHOSTS"),
    "task_count": ("SLURM_NTASKS", "PBS_TASKS", "FLUX_JOB_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "core_count": ("PBS_NP", "PBS_NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS"),
    "cores_per_task": ("SLURM_CPUS_PER_TASK",),
    "cores_on_node": ("SLURM_CPUS_ON_NODE", "PBS_NUM_PPN"),
    "memory_per_node_mib": ("SLURM_MEM_PER_NODE",),
    "memory_per_core_mib": ("SLURM_MEM_PER_CPU",),
    "submit_host": ("SLURM_SUBMIT_HOST", "PBS_O_HOST", "LSB_SUB_HOST", "SGE_O_HOST"),
    "submit_directory": ("SLURM_SUBMIT_DIR", "PBS_O_WORKDIR", "LS_SUBCWD", "SGE_O_WORKDIR"),
    "array_job": ("SLURM_ARRAY_JOB_ID", "PBS_ARRAY_ID"),
    "array_task": ("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "LSB_JOBINDEX", "SGE_TASK_ID"),
    "restart_count": ("SLURM_RESTART_COUNT",),
    "rank": (
        "SLURM_PROCID", "FLUX_TASK_RANK", "PBS_TASKNUM", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
        "MV2_COMM_WORLD_RANK", "PALS_RANKID",
    ),
    "local_rank": (
        "SLURM_LOCALID", "FLUX_TASK_LOCAL_ID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
        "MV2_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID",
    ),
    "node_rank": ("SLURM_NODEID", "OMPI_COMM_WORLD_NODE_RANK", "PBS_NODENUM", "PALS_NODEID"),
}  # fmt: skip
"""Common name of a fact: the variables that tell it, the first one set counts."""


class _System(NamedTuple):
    """How a batch system shows in the environment, and the command that tells more."""

    name: str
    job_id: tuple[str, ...]
    signs: tuple[str, ...]
    prefixes: tuple[str, ...]
    names: tuple[str, ...]
    command: str | None


_SYSTEMS = (
    _System("slurm", ("SLURM_JOB_ID", "SLURM_JOBID"), (), ("SLURM_",), (), "scontrol"),
    _System("pbs", ("PBS_JOBID",), (), ("PBS_",), (), "qstat"),
    _System("lsf", ("LSB_JOBID",), (), ("LSB_", "LS_", "LSF_"), (), "bjobs"),
    _System("flux", ("FLUX_JOB_ID",), ("FLUX_URI",), ("FLUX_",), (), "flux"),
    _System(
        "sge", ("JOB_ID",), (), ("SGE_",),
        ("JOB_ID", "JOB_NAME", "NSLOTS", "NHOSTS", "NQUEUES", "QUEUE", "PE", "PE_HOSTFILE"), "qstat",
    ),
    _System(
        "mpi", (),
        ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "MPI_LOCALRANKID"),
        ("OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PMIX_", "PMI_", "MV2_COMM_WORLD_", "PALS_"),
        ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"), None,
    ),
)  # fmt: skip


def _present(environment: Mapping[str, str]) -> list[tuple[_System, str | None]]:
    """Return the systems this process runs under, each with the id of its job."""
    result = []
    for system in _SYSTEMS:
        job_id = next((environment[name] for name in system.job_id if environment.get(name)), None)
        # JOB_ID alone may be anybody's variable.
        if system.name == "sge" and "SGE_ROOT" not in environment and "SGE_O_WORKDIR" not in environment:
            continue
        if job_id or any(environment.get(name) for name in system.signs):
            result.append((system, job_id))
    return result


# ---------------------------------------------------------------- what the environment tells


def environment_facts(environment: Mapping[str, str]) -> Iterator[BatchJob]:
    """Yield one row per fact the environment tells; outside of any job, one row that says so."""
    systems = _present(environment)
    if not systems:
        yield BatchJob("none", None, "system", "none", ENVIRONMENT)
    for system, job_id in systems:
        own = {n: v for n, v in environment.items() if n in system.names or n.startswith(system.prefixes)}
        for common, names in COMMON_NAMES.items():
            name = next((each for each in names if own.get(each)), None)
            if name is not None:
                yield _fact(system.name, job_id, common, own[name], ENVIRONMENT)
        for name, value in sorted(own.items()):
            yield _fact(system.name, job_id, name, value, ENVIRONMENT)
        yield from _node_file(system.name, job_id, environment)


def _fact(system: str, job_id: str | None, name: str, value: str, origin: str) -> BatchJob:
    shown = redacted_value(name, value)
    if shown is None:
        shown = REDACTED
    if len(shown) > _VALUE_LIMIT:
        shown = f"{shown[:_VALUE_LIMIT]}... ({len(shown)} characters)"
    return BatchJob(system, job_id, name, shown, origin)


def _node_file(system: str, job_id: str | None, environment: Mapping[str, str]) -> Iterator[BatchJob]:
    """PBS and Grid Engine name the nodes in a file: one line per slot, or per node and slot count."""
    variable = {"pbs": "PBS_NODEFILE", "sge": "PE_HOSTFILE"}.get(system)
    path = environment.get(variable or "")
    text = read_text(Path(path), 16 << 20) if path else None
    if text and variable:
        nodes = list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))
        yield _fact(system, job_id, "node_list", ",".join(nodes), variable)
        yield _fact(system, job_id, "node_count", str(len(nodes)), variable)


# ---------------------------------------------------------------- what the system's command tells


def command_facts(environment: Mapping[str, str], *, with_text: bool) -> Iterator[BatchJob | Source]:
    """Yield one row per fact the batch system's command tells of this job, and the job script where it is known.

    Asks only where the command is on PATH; takes a few seconds at the worst.

    Raises
    ------
    OSError
        The command failed or did not answer in time.
    """
    for system, job_id in _present(environment):
        if system.command is None or not shutil.which(system.command):
            continue
        ask = _ASK[system.name]
        for each in ask(job_id):
            if isinstance(each, _Script):
                yield text_source(each.path, each.text, with_text=with_text)
            else:
                name, value, origin = each
                yield _fact(system.name, job_id, name, value, origin)


class _Script(NamedTuple):
    """Text of a job script, and the path it was submitted from or a name for it."""

    path: str
    text: str


_Told = tuple[str, str, str] | _Script


def _ask_slurm(job_id: str | None) -> Iterator[_Told]:
    if job_id is None:
        return
    facts = slurm_facts(command_output(["scontrol", "show", "job", job_id]))
    for name, value in facts.items():
        yield name, value, "scontrol show job"
    if facts.get("BatchFlag") != "0":  # an interactive job has no script
        text = command_output(["scontrol", "write", "batch_script", job_id, "-"])
        command = facts.get("Command", "")
        if text.strip():
            yield _Script(command if command.startswith("/") else f"slurm job {job_id}", text)


def slurm_facts(output: str) -> dict[str, str]:
    """Return what `scontrol show job` prints as name and value; unset values (``(null)``) are left out.

    Values with spaces are kept whole on the lines that hold one free text (command, paths,
    comments), where they may contain ``=`` too.
    """
    facts: dict[str, str] = {}
    for line in re.split(r"\n\s*\n", output.strip())[0].splitlines():
        text = _SLURM_TEXT.match(line.strip())
        for pair in [text] if text else _SLURM_PAIR.finditer(line.strip()):
            if pair[2] not in ("", "(null)") and pair[1] != "MailUser":
                facts.setdefault(pair[1], pair[2])
    return facts


def _ask_pbs(job_id: str | None) -> Iterator[_Told]:
    if job_id is not None:
        for name, value in pbs_facts(command_output(["qstat", "-f", job_id])).items():
            yield name, value, "qstat -f"


def pbs_facts(output: str) -> dict[str, str]:
    """Return what `qstat -f` prints as name and value, wrapped lines joined, without the job's environment."""
    facts: dict[str, str] = {}
    indent: str | None = None
    last = ""
    for line in output.splitlines():
        pair = re.match(r"([ \t]+)([A-Za-z][\w.]*) = ?(.*)$", line)
        # Attributes share the first one's indent, continued lines have another.
        if pair and (indent is None or pair[1] == indent):
            indent, last = pair[1], pair[2]
            facts[last] = pair[3]
        elif last and line.strip():
            facts[last] += line.strip()
        elif last:
            break
    for private in ("Variable_List", "Mail_Users"):
        facts.pop(private, None)
    return facts


def _ask_sge(job_id: str | None) -> Iterator[_Told]:
    if job_id is not None:
        for name, value in sge_facts(command_output(["qstat", "-j", job_id])).items():
            yield name, value, "qstat -j"


def sge_facts(output: str) -> dict[str, str]:
    """Return what `qstat -j` prints as name and value, without the job's environment."""
    pairs = re.findall(r"^([A-Za-z_][\w ]*?):[ \t]+(\S.*?)\s*$", output, re.MULTILINE)
    return {name: value for name, value in pairs if name not in ("env_list", "mail_list", "context")}


def _ask_lsf(job_id: str | None) -> Iterator[_Told]:
    if job_id is not None:
        for name, value in lsf_facts(command_output(["bjobs", "-l", job_id])).items():
            yield name, value, "bjobs -l"


def lsf_facts(output: str) -> dict[str, str]:
    """Return the ``Name <value>`` pairs of `bjobs -l`, wrapped lines joined, and the run limit.

    LSF wraps without regard to words, so a blank at the end of a line is lost.
    """
    text = re.sub(r"\n[ \t]{15,}(?=\S)", "", output)
    pairs = re.findall(r"([A-Z][A-Za-z /()]*?) <(.*?)>(?=,\s*[A-Z0-9]|[;.]|\s*$)", text, re.MULTILINE)
    facts: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("Mail", "Mail User"):
            facts.setdefault(name, value.replace("> <", ","))
    limit = re.search(r"^\s*RUNLIMIT\s*\n\s*(\S.*?)\s*$", text, re.MULTILINE)
    if limit:
        facts["RUNLIMIT"] = limit[1]
    return facts


def _ask_flux(job_id: str | None) -> Iterator[_Told]:
    # The initial program of a batch job has no FLUX_JOB_ID: it is its instance that is the job.
    parent = () if job_id is not None else ("--parent",)
    if job_id is None:
        job_id = command_output(["flux", "getattr", "jobid"]).strip()
        yield "instance_job_id", job_id, "flux getattr"
    jobspec = json.loads(command_output(["flux", *parent, "job", "info", job_id, "jobspec"]))
    for name, value in flux_facts(jobspec).items():
        yield name, value, "flux job info jobspec"
    script = _script_of(jobspec)
    if script:
        yield _Script(f"flux job {job_id}", script)
    allocated = json.loads(command_output(["flux", *parent, "job", "info", job_id, "R"])).get("execution", {})
    for name in ("nodelist", "starttime", "expiration", "R_lite"):
        if name in allocated:
            yield name, _shown(allocated[name]), "flux job info R"


def flux_facts(jobspec: Mapping[str, Any]) -> dict[str, str]:
    """Return a jobspec's command, resources and system attributes as name and value, without environment or files."""
    system = jobspec.get("attributes", {}).get("system", {})
    facts = {name: _shown(system[name]) for name in ("cwd", "duration", "queue", "bank", "project") if name in system}
    if "name" in system.get("job", {}):
        facts["job.name"] = _shown(system["job"]["name"])
    options = system.get("shell", {}).get("options", {})
    facts.update({f"shell.options.{name}": _shown(value) for name, value in options.items()})
    if "resources" in jobspec:
        facts["resources"] = _shown(jobspec["resources"])
    commands = [task.get("command") for task in jobspec.get("tasks", ())]
    if commands:
        facts["command"] = _shown(commands[0])
    return facts


def _script_of(jobspec: Mapping[str, Any]) -> str | None:
    system = jobspec.get("attributes", {}).get("system", {})
    text = system.get("files", {}).get("script", {}).get("data") or system.get("batch", {}).get("script")
    return text if isinstance(text, str) else None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_ASK: dict[str, Callable[[str | None], Iterator[_Told]]] = {
    "slurm": _ask_slurm,
    "pbs": _ask_pbs,
    "lsf": _ask_lsf,
    "flux": _ask_flux,
    "sge": _ask_sge,
}
