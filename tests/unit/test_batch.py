import hashlib
import json
import time

import pytest

from recup.capture.batch import command_facts, environment_facts, lsf_facts, pbs_facts, sge_facts, slurm_facts
from recup.capture.command import command_output
from recup.schema import BatchJob, Source

SCONTROL = """\
JobId=4242 JobName=weekly mean
   UserId=jane(1000) GroupId=jane(1000) MCS_label=N/A
   Priority=4294901758 Nice=0 Account=climate QOS=normal
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:01:57 TimeLimit=1-00:00:00 TimeMin=N/A
   Partition=compute AllocNode:Sid=login1:1278
   NodeList=node[01-04]
   NumNodes=4 NumCPUs=256 NumTasks=4 CPUs/Task=64 ReqB:S:C:T=0:0:*:*
   TRES=cpu=256,mem=1000G,node=4,billing=256
   Socks/Node=* NtasksPerN:B:S:C=1:0:*:* CoreSpec=*
   Command=/home/jane/job.sh --password=hunter2 x=1
   WorkDir=/home/jane/my work=dir
   MailUser=jane@example.org MailType=NONE
   Power=
"""
SCONTROL_FACTS = {
    "JobId": "4242", "JobName": "weekly mean", "UserId": "jane(1000)", "GroupId": "jane(1000)", "MCS_label": "N/A",
    "Priority": "4294901758", "Nice": "0", "Account": "climate", "QOS": "normal", "JobState": "RUNNING",
    "Reason": "None", "Requeue": "1", "Restarts": "0", "BatchFlag": "1", "Reboot": "0", "ExitCode": "0:0",
    "RunTime": "00:01:57", "TimeLimit": "1-00:00:00", "TimeMin": "N/A", "Partition": "compute",
    "AllocNode:Sid": "login1:1278", "NodeList": "node[01-04]", "NumNodes": "4", "NumCPUs": "256", "NumTasks": "4",
    "CPUs/Task": "64", "ReqB:S:C:T": "0:0:*:*", "TRES": "cpu=256,mem=1000G,node=4,billing=256", "Socks/Node": "*",
    "NtasksPerN:B:S:C": "1:0:*:*", "CoreSpec": "*", "Command": "/home/jane/job.sh --password=hunter2 x=1",
    "WorkDir": "/home/jane/my work=dir", "MailType": "NONE",
}  # fmt: skip
JOB_SCRIPT = "#!/bin/bash\n#SBATCH -N 4\nexport API_TOKEN=abc\nsrun python x.py\n"

QSTAT_F = """\
Job Id: 68350.server
    Job_Name = cell-Qnormal
    Job_Owner = jane@login.cluster
    job_state = R
    queue = express
    Error_Path = login.cluster:/home/jane/scratch/cptest/scaletest/PTOs
\tcaletest/testjob.err
    Mail_Users = jane@example.org
    Resource_List.ncpus = 240
    Resource_List.select = 15:ncpus=16
    Resource_List.walltime = 01:00:00
    Variable_List = PBS_O_SYSTEM=Linux,PBS_O_SHELL=/bin/bash,
\tAWS_SECRET = hidden,
\tPBS_O_HOME=/home/jane
    comment = Job run at Tue Apr 09 at 18:26
    project = _pbs_project_default

Job Id: 68351.server
    Job_Name = other
"""

BJOBS = """
Job <473713>, Job Name <TM-T>, User <jane>, Project <default>, Status <RUN>,
                     Queue <pub.1h>, Job Priority <50>, Command <#!/bin/sh;#;ec
                     ho 'a' > out; sleep 300>, Share group charged </lsf/jane>
Wed Oct 19 17:10:27: Submitted from host <login2>, CWD <$HOME/test_queue>, Out
                     put File <lsf.o%J>, 8 Task(s), Requested Resources <span[
                     ptile=1] rusage[mem=1800]>;

 RUNLIMIT
 10.0 min of a6128
Wed Oct 19 17:11:02: Started 2 Task(s) on Host(s) <a6128> <a6129>, Execution H
                     ome </cluster/home/jane>, Execution CWD </cluster/home/ja
                     ne/test_queue>;
"""

JOBSPEC = {
    "version": 1,
    "resources": [{"type": "node", "count": 2, "with": [{"type": "slot", "count": 1, "label": "task"}]}],
    "tasks": [{"command": ["flux", "broker", "{{tmpdir}}/script"], "slot": "task", "count": {"per_slot": 1}}],
    "attributes": {
        "system": {
            "duration": 3600.0,
            "cwd": "/home/jane",
            "queue": "pbatch",
            "job": {"name": "mean"},
            "shell": {"options": {"mpi": "none"}},
            "environment": {"AWS_SECRET": "hidden"},
            "files": {"script": {"mode": 33216, "data": "#!/bin/sh\npython x.py\n", "encoding": "utf-8"}},
        }
    },
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Put a program of that name first on PATH; returns how to say what it does."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")

    def write(name, body):
        program = directory / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)

    return write


def test_outside_of_a_job_one_row_says_so():
    rows = list(environment_facts({"PATH": "/bin", "JOB_ID": "mine"}))
    assert rows == [BatchJob("none", None, "system", "none", "environment")]


def test_slurm_facts_stand_under_their_own_and_their_common_name():
    environment = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[01-04]",
        "SLURM_JWT": "abc",
        "SLURM_PROCID": "3",
        "OTHER": "x",
    }
    assert list(environment_facts(environment)) == [
        BatchJob("slurm", "4242", "node_list", "node[01-04]", "environment"),
        BatchJob("slurm", "4242", "rank", "3", "environment"),
        BatchJob("slurm", "4242", "SLURM_JOB_ID", "4242", "environment"),
        BatchJob("slurm", "4242", "SLURM_JOB_NODELIST", "node[01-04]", "environment"),
        BatchJob("slurm", "4242", "SLURM_JWT", "[redacted]", "environment"),
        BatchJob("slurm", "4242", "SLURM_PROCID", "3", "environment"),
    ]


def test_pbs_nodes_come_from_the_node_file(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("n1\nn1\nn2\nn2\n")
    environment = {"PBS_JOBID": "7.server", "PBS_NODEFILE": str(nodes)}
    assert list(environment_facts(environment)) == [
        BatchJob("pbs", "7.server", "PBS_JOBID", "7.server", "environment"),
        BatchJob("pbs", "7.server", "PBS_NODEFILE", str(nodes), "environment"),
        BatchJob("pbs", "7.server", "node_list", "n1,n2", "PBS_NODEFILE"),
        BatchJob("pbs", "7.server", "node_count", "2", "PBS_NODEFILE"),
    ]


def test_ranks_of_an_mpi_launcher_have_no_job_id():
    environment = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_MCA_x": "y"}
    assert list(environment_facts(environment)) == [
        BatchJob("mpi", None, "task_count", "8", "environment"),
        BatchJob("mpi", None, "rank", "1", "environment"),
        BatchJob("mpi", None, "OMPI_COMM_WORLD_RANK", "1", "environment"),
        BatchJob("mpi", None, "OMPI_COMM_WORLD_SIZE", "8", "environment"),
    ]


def test_a_grid_engine_job_is_known_by_its_root():
    environment = {"JOB_ID": "9", "SGE_ROOT": "/opt/sge", "NSLOTS": "4"}
    rows = [row[:4] for row in environment_facts(environment)]
    assert rows == [
        ("sge", "9", "core_count", "4"),
        ("sge", "9", "JOB_ID", "9"),
        ("sge", "9", "NSLOTS", "4"),
        ("sge", "9", "SGE_ROOT", "/opt/sge"),
    ]


def test_lsf_and_flux_jobs_are_recognised():
    environment = {"LSB_JOBID": "12", "LSB_QUEUE": "normal", "FLUX_JOB_ID": "f2Xy", "FLUX_JOB_SIZE": "2"}
    assert {(row.system, row.job_id, row.name, row.value) for row in environment_facts(environment)} >= {
        ("lsf", "12", "queue", "normal"),
        ("flux", "f2Xy", "task_count", "2"),
    }


def test_every_field_of_scontrol_is_read():
    assert slurm_facts(SCONTROL) == SCONTROL_FACTS


def test_scontrol_on_one_line_is_read_too():
    one_line = "JobId=1 JobName=a Features=(null) Command=/path/to/x.sh WorkDir=/home/jane Power="
    assert slurm_facts(one_line) == {"JobId": "1", "JobName": "a", "Command": "/path/to/x.sh", "WorkDir": "/home/jane"}


def test_qstat_is_read_without_the_environment_of_the_job():
    assert pbs_facts(QSTAT_F) == {
        "Job_Name": "cell-Qnormal",
        "Job_Owner": "jane@login.cluster",
        "job_state": "R",
        "queue": "express",
        "Error_Path": "login.cluster:/home/jane/scratch/cptest/scaletest/PTOscaletest/testjob.err",
        "Resource_List.ncpus": "240",
        "Resource_List.select": "15:ncpus=16",
        "Resource_List.walltime": "01:00:00",
        "comment": "Job run at Tue Apr 09 at 18:26",
        "project": "_pbs_project_default",
    }


def test_grid_engine_is_read_without_the_environment_of_the_job():
    output = """\
==============================================================
job_number:                 9
owner:                      jane
env_list:                   TERM=xterm,TOKEN=hidden
hard resource_list:         h_rt=3600
parallel environment:  smp range: 4
"""
    assert sge_facts(output) == {
        "job_number": "9",
        "owner": "jane",
        "hard resource_list": "h_rt=3600",
        "parallel environment": "smp range: 4",
    }


def test_wrapped_lines_of_bjobs_are_joined():
    assert lsf_facts(BJOBS) == {
        "Job": "473713", "Job Name": "TM-T", "User": "jane", "Project": "default", "Status": "RUN", "Queue": "pub.1h",
        "Job Priority": "50", "Command": "#!/bin/sh;#;echo 'a' > out; sleep 300", "Share group charged": "/lsf/jane",
        "Submitted from host": "login2", "CWD": "$HOME/test_queue", "Output File": "lsf.o%J",
        "Requested Resources": "span[ptile=1] rusage[mem=1800]", "Task(s) on Host(s)": "a6128,a6129",
        "Execution Home": "/cluster/home/jane", "Execution CWD": "/cluster/home/jane/test_queue",
        "RUNLIMIT": "10.0 min of a6128",
    }  # fmt: skip


def test_slurm_is_asked_for_the_job_and_its_script(command, tmp_path):
    (tmp_path / "show").write_text(SCONTROL)
    (tmp_path / "script").write_text(JOB_SCRIPT)
    command("scontrol", f'case "$1" in show) cat {tmp_path}/show;; write) cat {tmp_path}/script;; esac')
    rows = list(command_facts({"SLURM_JOB_ID": "4242"}, with_text=True))
    expected = SCONTROL_FACTS | {"Command": "/home/jane/job.sh --password=[redacted] x=1"}
    assert rows[:-1] == [BatchJob("slurm", "4242", n, v, "scontrol show job") for n, v in expected.items()]
    digest = hashlib.sha256(JOB_SCRIPT.encode()).hexdigest()
    text = JOB_SCRIPT.replace("=abc", "=[redacted]")
    assert rows[-1] == Source(digest, "script", SCONTROL_FACTS["Command"], 1, text)


def test_flux_is_asked_for_jobspec_and_resources(command, tmp_path):
    allocated = {"version": 1, "execution": {"nodelist": ["corona[1-2]"], "R_lite": [{"rank": "0-1"}]}}
    (tmp_path / "jobspec").write_text(json.dumps(JOBSPEC))
    (tmp_path / "R").write_text(json.dumps(allocated))
    command("flux", f'test "$1 $2 $3" = "job info f2Xy" && cat {tmp_path}/$4')
    rows = list(command_facts({"FLUX_JOB_ID": "f2Xy"}, with_text=True))
    assert [row[2:] for row in rows if isinstance(row, BatchJob)] == [
        ("cwd", "/home/jane", "flux job info jobspec"),
        ("duration", "3600.0", "flux job info jobspec"),
        ("queue", "pbatch", "flux job info jobspec"),
        ("job.name", "mean", "flux job info jobspec"),
        ("shell.options.mpi", "none", "flux job info jobspec"),
        ("resources", json.dumps(JOBSPEC["resources"]), "flux job info jobspec"),
        ("command", json.dumps(JOBSPEC["tasks"][0]["command"]), "flux job info jobspec"),
        ("nodelist", '["corona[1-2]"]', "flux job info R"),
        ("R_lite", '[{"rank": "0-1"}]', "flux job info R"),
    ]
    assert [row.text for row in rows if isinstance(row, Source)] == ["#!/bin/sh\npython x.py\n"]


def test_pbs_and_lsf_are_asked_for_the_job(command, tmp_path):
    (tmp_path / "qstat").write_text(QSTAT_F)
    (tmp_path / "bjobs").write_text(BJOBS)
    command("qstat", f'test "$*" = "-f 68350.server" && cat {tmp_path}/qstat')
    command("bjobs", f'test "$*" = "-l 473713" && cat {tmp_path}/bjobs')
    rows = list(command_facts({"PBS_JOBID": "68350.server", "LSB_JOBID": "473713"}, with_text=True))
    assert BatchJob("pbs", "68350.server", "Resource_List.walltime", "01:00:00", "qstat -f") in rows
    assert BatchJob("lsf", "473713", "Queue", "pub.1h", "bjobs -l") in rows


def test_a_system_without_its_command_is_not_asked(command):
    assert list(command_facts({"SLURM_JOB_ID": "1", "PBS_JOBID": "2"}, with_text=True)) == []


def test_a_command_that_hangs_is_ended_with_its_children(command):
    command("scontrol", "sleep 60; echo late")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"`scontrol show` did not answer within 0\.2 s"):
        command_output(["scontrol", "show"], timeout_s=0.2)
    assert time.monotonic() - start < 30


def test_a_command_that_fails_says_why(command):
    command("scontrol", "echo 'Invalid job id' >&2; exit 1")
    with pytest.raises(ChildProcessError, match="exit code 1: Invalid job id"):
        command_output(["scontrol", "show"])


def test_a_command_is_not_instrumented_like_the_workload(command, monkeypatch):
    monkeypatch.setenv("DARSHAN_LOGPATH", "/x")
    monkeypatch.setenv("GIT_DIR", "/x")
    command("show", "env")
    shown = command_output(["show"])
    assert "LC_ALL=C" in shown
    assert "DARSHAN" not in shown
    assert "GIT_DIR" not in shown
