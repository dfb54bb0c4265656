"""gpu.py's plugin for pytest: it writes the result of each test at once, and ends a process whose
GPU no longer answers.

The next process goes on after the last test that began. gpu_process.py imports the dry GPU.
"""

import json
import os
from pathlib import Path

import gpu_process
import pytest

LAST_LINES = 15


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list) -> None:
    lines = Path(os.environ["GPU_RESULTS"]).read_text("utf-8").splitlines()
    begun = {json.loads(line).get("begun") for line in lines}
    gpu_process.write(collected=len(items))
    items[:] = [item for item in items if item.nodeid not in begun]


def pytest_runtest_logstart(nodeid: str) -> None:
    gpu_process.write(begun=nodeid)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" or not report.passed:
        line = {"test": item.nodeid, "outcome": report.outcome, "when": report.when}
        if report.failed:
            line["kind"] = call.excinfo.typename
            line["last lines"] = report.longreprtext.splitlines()[-LAST_LINES:]
        gpu_process.write(**line)
        if report.failed:
            gpu_process.end_if_broken()
