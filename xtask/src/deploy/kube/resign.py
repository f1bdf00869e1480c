"""Prints the token in a file, changed so that it has expired: `resign.py TOKEN KEY`.

KEY is the private key with which the API server signs the tokens of service accounts.
"""

import base64
import json
import subprocess
import sys


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


token, key = sys.argv[1:]
with open(token) as file:
    header, payload, _ = file.read().strip().split(".")
claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
# An hour before, with the others in order.
for claim in ("iat", "nbf", "exp"):
    claims[claim] -= 7200
signed = f"{header}.{encoded(json.dumps(claims).encode())}"
signature = subprocess.run(
    ["openssl", "dgst", "-sha256", "-sign", key], input=signed.encode(), stdout=subprocess.PIPE, check=True
).stdout
print(f"{signed}.{encoded(signature)}")
