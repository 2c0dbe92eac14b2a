"""Faults of the system under a conversion: a full disk is called one, and nothing else is."""

import errno
import os
import shutil
import stat
import subprocess

import pytest
from conversion_data import ONE, tiny_spec, unique_tensors, write_folder

from r1mega.conversion.convert import convert
from r1mega.conversion.verify import verify
from r1mega.errors import ConversionError, R1MegaError
from r1mega.runtime import files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    spec = tiny_spec()
    return write_folder(tmp_path_factory.mktemp("hf") / "tiny", spec, unique_tensors(spec), num_files=2)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small file system")
def test_a_full_disk(whole, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        with pytest.raises(ConversionError, match=r"disk is full: 0\.0 GB are needed"):
            convert(whole, small / "out", "megatron", None, ONE)
        # Filled up by others meanwhile: the first part is kept, and the same command goes on from it.
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
        with pytest.raises(ConversionError, match=r"disk is full; what is written is kept"):
            convert(whole, small / "out", "megatron", None, ONE)
        assert not (small / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=30m", str(small)], check=True)
        assert convert(whole, small / "out", "megatron", None, ONE).num_kept > 0
        assert verify(small / "out", whole, None).largest == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("flush", ["fsync", "fdatasync"])
@pytest.mark.parametrize("form", ["megatron", "hf"])
def test_other_faults_of_the_system_are_not_called_a_full_disk(whole, tmp_path, monkeypatch, flush, form):
    sync = getattr(os, flush)

    def refuse(fd):
        if not stat.S_ISDIR(os.fstat(fd).st_mode):  # the work folder itself can be made
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, flush, refuse)
    monkeypatch.setattr(files, "FLUSH_BYTES", 1)
    with pytest.raises(OSError, match="Input/output"):
        convert(whole, tmp_path / "out", form, None, ONE)
    assert not (tmp_path / "out").exists()
    assert not issubclass(OSError, R1MegaError)
