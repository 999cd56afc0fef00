"""encrypt and decrypt: secrets at rest in ordinary memory, readable by this process only."""

import subprocess
import sys
import threading

import pytest

import mmkit
from mmkit import Secret
from mmkit.secret import decrypt, encrypt
from support import PAGE, in_child, locked_bytes, locks

pytest.importorskip("cryptography")

KEY = bytes(range(1, 33))


@pytest.mark.parametrize("length", [1, 32, 5000])
def test_what_is_encrypted_comes_back(length):
    content = bytes(i % 251 + 1 for i in range(length))
    with Secret.take(bytearray(content)) as secret:
        sealed = encrypt(secret)
    assert length == 1 or content not in sealed  # one byte is there by chance, now and then
    assert len(sealed) == length + 28
    for how in ({}, {"isolated": True}, {"lock": "off"}):
        with decrypt(sealed, **how) as back:
            assert back == content


def test_the_same_secret_is_never_the_same_text():
    with Secret.take(bytearray(KEY)) as secret:
        assert len({encrypt(secret)[12:] for _ in range(100)}) == 100


@pytest.mark.parametrize("place", [0, 12, 30, -1])
def test_what_was_changed_is_refused(place):
    with Secret.take(bytearray(KEY)) as secret:
        sealed = bytearray(encrypt(secret))
    sealed[place] ^= 1
    with pytest.raises(mmkit.CorruptError, match="changed"):
        decrypt(bytes(sealed))
    with pytest.raises(mmkit.CorruptError, match="shorter"):
        decrypt(bytes(sealed[:28]))


@locks
def test_thousands_cost_no_more_of_the_lock_limit_than_one():
    with Secret.take(bytearray(KEY)) as secret:
        sealed = [encrypt(secret)]
        before = locked_bytes()
        sealed += [encrypt(secret) for _ in range(3000)]
        for each in sealed:
            with decrypt(each) as back:
                assert back == KEY
    assert locked_bytes() <= before + PAGE


def test_a_child_has_another_key_of_its_own():
    with Secret.take(bytearray(KEY)) as secret:
        sealed = encrypt(secret)

    def use():
        with pytest.raises(mmkit.CorruptError, match="another process"):
            decrypt(sealed)
        with Secret.take(bytearray(b"child")) as own, decrypt(encrypt(own)) as back:
            return back == b"child"

    assert in_child(use)
    with decrypt(sealed) as back:
        assert back == KEY


def test_threads_use_one_key():
    results = []

    def use():
        with Secret.random(32) as secret, decrypt(encrypt(secret)) as back:
            results.append(back == secret)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


@pytest.mark.parametrize("library", ["None", "types.SimpleNamespace(ChaCha20Poly1305=bytes)"])
def test_without_the_library_or_with_an_old_one_the_message_says_what_to_install(library):
    code = f"""
import sys, types
sys.modules["cryptography.hazmat.primitives.ciphers.aead"] = {library}
import mmkit
try:
    mmkit.secret.encrypt(mmkit.Secret(1))
except ImportError as error:
    print(error)
"""
    assert (
        "mmkit[secret]" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    )
