"""The network is cut where notebooks run, and only the outside is cut."""

import socket
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

OUTSIDE = "192.0.2.1"  # an address that is set aside for documentation

REACH_OUT = {
    "connect": f"import socket; socket.create_connection(('{OUTSIDE}', 80), 1)",
    "send": "import socket; s = socket.socket(type=socket.SOCK_DGRAM); "
    f"s.sendto(b'hello', ('{OUTSIDE}', 80))",
    "look up": "import socket; socket.getaddrinfo('example.org', 80)",
    "look up by name": "import socket; socket.gethostbyname('example.org')",
    "urllib": f"import urllib.request as u; u.urlopen('http://{OUTSIDE}', timeout=1)",
    "asyncio": f"import asyncio; asyncio.run(asyncio.open_connection('{OUTSIDE}', 80))",
}

LOOPBACK = """
import socket
for host in "127.0.0.1", "localhost":
    with socket.create_server((host, 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            accepted, _ = server.accept()
            client.sendall(b"hello")
            print(accepted.recv(5))
            accepted.close()
"""


def run_in_kernel(code):
    """Run one cell in a kernel, as nbval does; return what it printed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    return "".join(output["text"] for output in notebook.cells[0].outputs)


@pytest.mark.parametrize("code", REACH_OUT.values(), ids=REACH_OUT)
def test_child_process_cannot_reach_outside(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "NetworkIsCutError: tests and grading run without a network" in done.stderr


def test_child_process_can_talk_to_itself():
    done = subprocess.run(
        [sys.executable, "-c", LOOPBACK], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["b'hello'"] * 2


def test_kernel_cannot_reach_outside():
    with pytest.raises(CellExecutionError, match="run without a network"):
        run_in_kernel(REACH_OUT["connect"])


def test_kernel_can_talk_to_this_machine():
    assert run_in_kernel(LOOPBACK).split() == ["b'hello'"] * 2


def test_this_process_cannot_reach_outside():
    with pytest.raises(ConnectionError, match="run without a network"):
        socket.create_connection((OUTSIDE, 80), 1)
