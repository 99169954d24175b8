#!/usr/bin/env python3
"""client.py put TOPIC TEXT: a record onto flash. client.py listen FILTER: commands from upstream, as they come."""
import json, os, socket, sys, time, uuid

LATER = ("full", "degraded", "busy", "shutting_down")  # the same again, in a while


def connect():
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(os.environ.get("BACKHAUL_SOCKET", "/run/backhaul/backhaul.sock"))
        return stream.makefile("rw")


def ask(agent, request):
    print(json.dumps(request), file=agent, flush=True)
    return json.loads(agent.readline() or '{"error": {"code": "shutting_down"}}')


def put(topic, text):
    # The key makes a retry safe: whatever died between request and answer, it is one record.
    request = {"put": {"topic": topic, "text": text, "key": str(uuid.uuid4()), "wait": "committed"}}
    while True:
        try:
            answer = ask(connect(), request)
            if answer.get("error", {}).get("code") not in LATER:
                return answer
        except OSError:
            pass  # no agent yet
        time.sleep(1)


def listen(topic_filter):
    agent = connect()
    answer = ask(agent, {"subscribe": {"topic": topic_filter}})
    while "command" in answer:
        print(json.dumps(answer["command"]), flush=True)  # act on it here: it comes again until it is done
        answer = ask(agent, {"done": {"seq": answer["command"]["seq"]}})


print(json.dumps(put(*sys.argv[2:]))) if sys.argv[1] == "put" else listen(sys.argv[2])
