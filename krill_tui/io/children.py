"""Child processes: what they may import, which variables they see, and that they do not outlive their parent.

`python -P -m krill_tui.io.children PARENT MODULE ARGUMENTS…` is how each is started: it binds itself to its parent, then
runs the module as a program.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from krill_tui.io.secrets import is_secret_name

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5

_NEEDED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "ALFWORLD_DATA",
        "KRILL_RUNS",
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ]
)
_NEEDED_PREFIXES = (
    *(
        "LC_",
        "PYTHON",
        "XDG_",
        "DYLD_",
        "MALLOC_",
        "GLIBC_",
        "OMP_",
        "MKL_",
        "KMP_",
        "GOMP_",
        "OPENBLAS_",
        "NUMEXPR_",
    ),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "GLOO_", "HIP_", "ROCR_", "ROCM_", "HSA_", "TRITON_"),
    *(
        "TORCH",
        "PYTORCH_",
        "HF_",
        "HUGGINGFACE_",
        "TRANSFORMERS_",
        "TOKENIZERS_",
        "SAFETENSORS_",
        "ACCELERATE_",
        "FSDP_",
    ),
)
_NETWORK = frozenset(
    name for word in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (word, word.lower())
)
_HUB_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"})


def child_command(module: str, *arguments: str, ending: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line that runs a module of ours, or of a library, as a child of this process.

    `ending` is the signal it gets when this process is gone.
    """
    parent = f"{os.getpid()}:{int(ending)}"
    return [sys.executable, "-P", "-m", "krill_tui.io.children", parent, module, *arguments]


def child_environment(
    *, downloads: bool = False, environ: Mapping[str, str] | None = None, **more: str
) -> dict[str, str]:
    """The variables that a child sees: those on a list of names it needs, and `more`.

    No key, token or password is among them; with `downloads`, the proxies and the Hugging Face token are, since a
    model may have to be fetched. Nothing is ever imported from the working directory.
    """
    environ = os.environ if environ is None else environ
    found = {name: value for name, value in environ.items() if _is_needed(name, downloads=downloads)}
    found["PYTHONSAFEPATH"] = "1"
    search = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(part)]
    # A checkout that was never installed is found by nobody else; an installed package is.
    if (_PACKAGE_PARENT / "pyproject.toml").is_file():
        search.append(str(_PACKAGE_PARENT))
    found.pop("PYTHONPATH", None)
    if search:
        found["PYTHONPATH"] = os.pathsep.join(search)
    return found | more


def _is_needed(name: str, *, downloads: bool) -> bool:
    if downloads and (name in _HUB_TOKENS or name in _NETWORK):
        return True
    if name in _HUB_TOKENS or is_secret_name(name):
        return False
    return name in _NEEDED or name.startswith(_NEEDED_PREFIXES)


def leave_with_parent(parent: int, ending: signal.Signals = signal.SIGKILL) -> None:
    """End this process, whatever it does, once process `parent`, that started it, is gone."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(ending))
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)
    if sys.platform != "linux":
        watch_parent(parent, ending)


def watch_parent(parent: int, ending: signal.Signals = signal.SIGKILL) -> None:
    """The same by looking twice a second, for a child of a program that may start it from a thread that ends."""
    threading.Thread(target=_watch, args=(parent, ending), daemon=True).start()


def _watch(parent: int, ending: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), ending)


def main() -> None:
    """Bind this process to its parent and become the program that was named."""
    parent, _, ending = sys.argv[1].partition(":")
    leave_with_parent(int(parent), signal.Signals(int(ending)))
    # Logs, adapters and caches of a run are for its owner alone.
    os.umask(0o077)
    module = sys.argv[2]
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
