"""TLS on every door, and what its settings refuse."""

import datetime
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from burnish.config.serving import TlsConfig
from burnish.errors import ConfigError
from burnish.serving.certificates import certificate_end
from burnish.serving.proto import burnish_pb2 as pb
from burnish.serving.proto.burnish_pb2_grpc import GenerationStub

from .test_rest import free_port

DAYS = 20


def certificate(folder: Path, name: str = "server") -> TlsConfig:
    """A certificate of localhost that signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = TlsConfig(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    found.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    found.key.write_bytes(key.private_bytes(*form))
    return found


@pytest.mark.slow
def test_both_doors(tmp_path: Path, tiny_folder: Path) -> None:
    tls, ports = certificate(tmp_path), (free_port(), free_port())
    command = [sys.executable, "-m", "burnish", "serve", str(tiny_folder), "--name", "tiny"]
    command += ["--port", str(ports[0]), "--grpc.port", str(ports[1]), "--model.compute_dtype", "float32"]
    command += ["--tls.certificate", str(tls.certificate), "--tls.key", str(tls.key)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    trusted = ssl.create_default_context(cafile=str(tls.certificate))

    def ask(path: str, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPSConnection("localhost", ports[0], timeout=30, context=trusted)
        raw = None if body is None else json.dumps(body).encode()
        connection.request("GET" if raw is None else "POST", path, raw, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    try:
        until = time.monotonic() + 120
        while True:
            try:
                if ask("/readyz")[0] == 200:
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
        status, text = ask("/v1/completions", {"model": "tiny", "prompt": "Hi", "max_tokens": 3, "temperature": 0})
        assert status == 200
        credentials = grpc.ssl_channel_credentials(tls.certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{ports[1]}", credentials) as channel:
            sampling = pb.Sampling(max_tokens=3, temperature=0)
            request = pb.GenerateRequest(model="tiny", text="Hi", sampling=sampling)
            answer = GenerationStub(channel).Generate(request, timeout=30)
        assert answer.answers[0].text == json.loads(text)["choices"][0]["text"]
        with pytest.raises(ssl.SSLError):  # nobody vouches for it here
            http.client.HTTPSConnection("localhost", ports[0], timeout=30).request("GET", "/readyz")
        (line,) = (
            line
            for line in ask("/metrics")[1].splitlines()
            if line.startswith("burnish_serve_certificate_expiry_timestamp_seconds ")
        )
        assert abs(float(line.split()[1]) - time.time() - DAYS * 86400) < 600
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
            process.wait(30)
    assert f"https://127.0.0.1:{ports[0]}/v1" in said and "Traceback" not in said


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    one, two = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    assert certificate_end(one) > time.time()
    with pytest.raises(ConfigError, match=r"tls\.certificate="):
        certificate_end(TlsConfig(certificate=one.certificate, key=two.key))
    with pytest.raises(ConfigError, match=r"none\.pem"):
        certificate_end(TlsConfig(certificate=tmp_path / "none.pem", key=one.key))
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(ConfigError):
        certificate_end(TlsConfig(certificate=tmp_path / "junk", key=tmp_path / "junk"))
