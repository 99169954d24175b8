"""Ends TLS in front of an upstream, as strictly as it is told: Python's ssl, which nobody here wrote.

usage: tls_front.py PORT TARGET_PORT CERT KEY CLIENT_CA MIN MAX
CLIENT_CA: clients must show a certificate of it; "-": none is asked for. MIN, MAX: TLSv1_1, TLSv1_2, TLSv1_3.
"""

import socket
import ssl
import sys
import threading
import warnings

warnings.simplefilter("ignore")
port, target, cert, key, client_ca, least, most = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
if least == "TLSv1_1":
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
context.minimum_version = ssl.TLSVersion[least]
context.maximum_version = ssl.TLSVersion[most]
if client_ca != "-":
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client_ca)


def pump(source, sink):
    try:
        while data := source.recv(16384):
            sink.sendall(data)
    except (OSError, ssl.SSLError):
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(plain):
    try:
        secured = context.wrap_socket(plain, server_side=True)
        upstream = socket.create_connection(("127.0.0.1", int(target)))
    except (OSError, ssl.SSLError) as error:
        print("refused", error, flush=True)
        # An alert is lost in a reset: wait for the other side to leave.
        try:
            plain.settimeout(10)
            while plain.recv(4096):
                pass
        except (OSError, ValueError):
            pass
        return
    print("accepted", secured.version(), flush=True)
    threading.Thread(target=pump, args=(upstream, secured), daemon=True).start()
    pump(secured, upstream)


listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
