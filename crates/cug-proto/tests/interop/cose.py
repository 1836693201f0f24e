"""Opens and seals login envelopes with pycose, cbor2 and cryptography: an implementation of RFC 9052, 9053 and 8230 not written here.

cose.py open KEY   stdin: an envelope. stdout: its structure and its payload, one line per field.
cose.py seal KEY   stdin: the fields of the payload, see `seal`. stdout: an envelope.

KEY is a file with the server's private key (open) or public key (seal), PEM.
"""

import hashlib
import json
import os
import sys

import cbor2
from cryptography.hazmat.primitives import serialization
from pycose.algorithms import A256GCM, RsaesOaepSha256
from pycose.headers import IV, KID, Algorithm
from pycose.keys import RSAKey
from pycose.messages import CoseMessage, EncMessage
from pycose.messages.recipient import KeyWrap


def number(value):
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def private_key(pem):
    own = serialization.load_pem_private_key(pem, None).private_numbers()
    return RSAKey(
        n=number(own.public_numbers.n), e=number(own.public_numbers.e), d=number(own.d), p=number(own.p), q=number(own.q),
        dp=number(own.dmp1), dq=number(own.dmq1), qinv=number(own.iqmp),
    )  # fmt: skip


def public_key(pem):
    """The key, and its ID: SHA-256 of the DER SubjectPublicKeyInfo."""
    key = serialization.load_pem_public_key(pem)
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    numbers = key.public_numbers()
    return RSAKey(n=number(numbers.n), e=number(numbers.e)), hashlib.sha256(spki).digest()


def show(value):
    """One form for each type, so that a text, a byte string and a number never look alike."""
    if isinstance(value, bytes):
        return "h'" + value.hex() + "'"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(show, value)) + "]"
    return json.dumps(value)


def open_envelope(pem, envelope):
    # The bare CBOR first: what is on the wire, before a library has interpreted it.
    outer = cbor2.loads(envelope)
    protected, unprotected, _ciphertext, recipients = outer.value
    print("tag", outer.tag)
    print("protected", show(protected))
    print("unprotected", sorted(unprotected), len(unprotected[5]))
    for inner_protected, inner_unprotected, wrapped in recipients:
        print("recipient", show(inner_protected), [(k, show(v)) for k, v in sorted(inner_unprotected.items())], len(wrapped))

    message = CoseMessage.decode(envelope)
    recipient = message.recipients[0]
    recipient.key = private_key(pem)
    payload = cbor2.loads(message.decrypt(recipient))
    for key in sorted(payload):
        print("field", key, show(payload[key]))


def seal(pem, fields):
    """`fields`: a JSON list of [key, type, value]; type is "bytes" (hex), "ips" (list of [variant, hex]) or "plain"."""
    payload = {}
    for key, kind, value in json.loads(fields):
        if kind == "bytes":
            value = bytes.fromhex(value)
        elif kind == "ips":
            value = [[variant, bytes.fromhex(address)] for variant, address in value]
        payload[key] = value
    key, key_id = public_key(pem)
    recipient = KeyWrap(uhdr={Algorithm: RsaesOaepSha256, KID: key_id}, key=key)
    message = EncMessage(
        phdr={Algorithm: A256GCM}, uhdr={IV: os.urandom(12)}, payload=cbor2.dumps(payload), recipients=[recipient]
    )
    sys.stdout.buffer.write(message.encode())


def main():
    command, path = sys.argv[1:]
    with open(path, "rb") as file:
        pem = file.read()
    {"open": open_envelope, "seal": seal}[command](pem, sys.stdin.buffer.read())


if __name__ == "__main__":
    main()
