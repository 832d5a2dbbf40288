"""Nodes for the scripts beside this file: build, start, ask, stop. Python's standard library alone.

Everything a script starts it ends again, by process id: on success, on failure and on Ctrl-C. Nodes listen on loopback
only, on ports that were free when the script began, and keep their data and logs in a temporary directory.
"""

import atexit
import ctypes
import http.client
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What the scripts install or write beside the build: virtual environments, npm packages, screenshots, tables.
WORK = os.path.join(ROOT, "target", "scripts")
# A developer's own settings must not reach the nodes of a script.
SETTINGS = (
    "NODE_NUM HTTP_PORT GRPC_PORT GOSSIP_PORT BIND_ADDR ADVERTISE_ADDR MESH_INSECURE SEEDS REPLICATION_FACTOR "
    "CLUSTER_SIZE DATA_DIR DEBUG_LOG DURABILITY ANTI_ENTROPY_INTERVAL GOSSIP_INTERVAL GC_GRACE HINT_WINDOW "
    "HINT_BYTES_MAX VALUE_BYTES_MAX CLOCK_SKEW_MAX REQUEST_TIMEOUT ZONE WEIGHT LOG_FILTER LOG_FORMAT RUST_LOG"
).split()


class Failed(Exception):
    """A check that does not hold; its text says which."""


class Skipped(Exception):
    """A check that this machine cannot run; its text says why."""


def say(text=""):
    print(text, flush=True)


def check(holds, text):
    """One line of the report; what does not hold ends the case."""
    if not holds:
        raise Failed(text)
    say(f"  ok  {text}")


def wait_until(what, condition, seconds, every=0.05):
    """Polls until the condition is true and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(every)


# --- what the scripts need installed ---------------------------------------------------------------------------------


def run(*command, **options):
    """Runs a command to its end, its output shown only when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def debian(package, provides):
    """Installs a Debian package where the file or command it provides is missing."""
    if os.path.exists(provides) or shutil.which(provides):
        return
    say(f"Installing {package} (Debian)")
    if os.geteuid() != 0:
        raise Failed(f"{provides} is missing: install Debian's package {package}, or run this as root")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", package)
    try:
        run(*install, env=quiet)
    except Failed:  # The lists of a new machine are empty or old.
        run("apt-get", "-o", "DPkg::Lock::Timeout=300", "update", env=quiet)
        run(*install, env=quiet)


def python_with(name, *packages):
    """The Python of a virtual environment under target/ that has these packages of PyPI."""
    home = os.path.join(WORK, "python-" + name)
    python, stamp = os.path.join(home, "bin", "python"), os.path.join(home, "installed")
    wanted = " ".join(packages)
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        say(f"Installing {wanted} (PyPI) into target/")
        shutil.rmtree(home, ignore_errors=True)
        try:
            run(sys.executable, "-m", "venv", home)
        except Failed:  # Debian splits venv off.
            debian("python3-venv", "/usr/share/doc/python3-venv")
            run(sys.executable, "-m", "venv", home)
        run(python, "-m", "pip", "install", "--quiet", *packages)
        open(stamp, "w").write(wanted)
    return python


def npm_with(name, *packages):
    """The folder of npm packages under target/ that has these; their install scripts do not run."""
    debian("nodejs", "node")
    debian("npm", "npm")
    home = os.path.join(WORK, "npm-" + name)
    stamp = os.path.join(home, "installed")
    wanted = " ".join(packages)
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        say(f"Installing {wanted} (npm) into target/")
        shutil.rmtree(home, ignore_errors=True)
        os.makedirs(home)
        run("npm", "install", "--prefix", home, "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", *packages)
        open(stamp, "w").write(wanted)
    return home


def binary():
    """The release build of a3, made now; A3_BINARY names another one."""
    if os.environ.get("A3_BINARY"):
        return os.path.abspath(os.environ["A3_BINARY"])
    say("Building a3 (release)")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.join(target, "release", "a3")


# --- processes -------------------------------------------------------------------------------------------------------

_started = []


def _die_with_parent():
    """In the child: the kernel kills it when this script dies, however that happens."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def spawn(command, log, env=None, group=None):
    """Starts a process that ends with this script, in a group of its own where one is given (by root). Call it from the
    main thread only."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, preexec_fn=_die_with_parent, group=group
        )
    _started.append(process)
    return process


@atexit.register
def _end_all():
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.wait()


def _on_sigterm(_signal, _frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Once is enough: the ending itself must not be cut short.
    sys.exit(143)


signal.signal(signal.SIGTERM, _on_sigterm)


def free_ports(count):
    """Ports of loopback that nobody listens on, below those the kernel gives to clients."""
    found = []
    while len(found) < count:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


# --- asking ----------------------------------------------------------------------------------------------------------


class Answer:
    """What came back; status 0 where nothing did, with the reason as its body."""

    def __init__(self, status, headers, body, sent=True):
        self.status, self.headers, self.body, self.sent = status, headers, body, sent

    @property
    def ok(self):
        return 200 <= self.status < 300

    @property
    def version(self):
        """The version that it tells of: the value's, or the one that a deletion left. None: it tells of none."""
        return self.headers.get("A3-Version")

    @property
    def outcome(self):
        """What became of a write, as far as its answer says: applied, not_applied or unknown."""
        if self.ok:
            return "applied"
        if 400 <= self.status < 500:
            return "not_applied"
        if self.status:
            return self.json().get("outcome", "unknown")
        return "unknown" if self.sent else "not_applied"

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:1000]!r}"


class Client:
    """One keep-alive connection to a node."""

    def __init__(self, port, timeout=10):
        self.port, self.timeout, self.connection = port, timeout, None

    def ask(self, method, path, body=None, headers=None):
        if self.connection is not None and self.ended():
            self.close()
        fresh = self.connection is None
        if fresh:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            self.connection.request(method, path, body, headers or {})
            reply = self.connection.getresponse()
            return Answer(reply.status, reply.headers, reply.read())
        except (OSError, http.client.HTTPException) as problem:
            self.close()
            stale = isinstance(problem, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError))
            if not fresh and stale and method == "GET":  # The server had closed an idle connection.
                return self.ask(method, path, body, headers)
            # Only a connection that was never made is sure to have carried nothing.
            return Answer(0, {}, repr(problem).encode(), sent=not isinstance(problem, ConnectionRefusedError))

    def ended(self):
        """Whether the server has closed the idle connection, so that a write on it would have an unknown end."""
        if self.connection.sock is None:
            return False
        poller = select.poll()
        poller.register(self.connection.sock, select.POLLIN)
        return bool(poller.poll(0))

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def path_of(key, **query):
    text = urllib.parse.quote(key, safe="")
    return f"/kv/{text}" + ("?" + urllib.parse.urlencode(query) if query else "")


class Node:
    """One process of a3 and its data directory."""

    def __init__(self, num, http_port, grpc_port, folder, settings, executable=None):
        self.executable = executable
        self.num, self.http, self.grpc = num, http_port, grpc_port
        self.data = os.path.join(folder, f"node{num}")
        self.log = os.path.join(folder, f"node{num}.log")
        self.settings = dict(settings)
        self.process = None
        self.group = None  # The group its process runs in, by which a firewall tells its packets.

    @property
    def name(self):
        return f"n{self.num}"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http}"

    def environment(self, **more):
        env = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        env.update(NODE_NUM=str(self.num), HTTP_PORT=str(self.http), GRPC_PORT=str(self.grpc), DATA_DIR=self.data)
        env.update(self.settings)
        env.update(more)
        return env

    def start(self, **more):
        """Starts it; the words are settings or other environment variables of this start alone."""
        command = [self.executable or program(), "serve"]
        self.process = spawn(command, self.log, self.environment(**more), self.group)
        return self

    def ask(self, method, path, body=None, headers=None, timeout=10):
        client = Client(self.http, timeout)
        try:
            return client.ask(method, path, body, headers)
        finally:
            client.close()

    def put(self, key, value, headers=None, **query):
        return self.ask("PUT", path_of(key, **query), value, headers)

    def delete(self, key, headers=None, **query):
        return self.ask("DELETE", path_of(key, **query), headers=headers)

    def get(self, key, **query):
        return self.ask("GET", path_of(key, **query))

    def ready(self):
        return self.ask("GET", "/readyz", timeout=2).status == 200

    def wait_ready(self, seconds=15):
        def condition():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode} instead of getting ready:\n{self.tail()}")
            return self.ready()

        try:
            wait_until(f"{self.name} is ready", condition, seconds, every=0.01)
        except Failed as problem:
            raise Failed(f"{problem}\n{self.ask('GET', '/readyz?verbose').body.decode(errors='replace')}\n{self.tail()}")
        return self

    def hints(self):
        """How many hints it keeps."""
        answer = self.ask("GET", "/hints")
        if not answer.ok:
            raise Failed(f"GET /hints at {self.name}: {answer}")
        return answer.json()["pending"]

    def metric(self, name):
        """The sum of a metric's samples."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        found = [line for line in lines if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def cpu_seconds(self):
        """Processor time it has taken so far, in user space and in the kernel."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise Failed(f"no VmRSS for {self.name}")

    def tail(self, lines=15):
        with open(self.log, errors="replace") as log:
            return "".join(f"    | {line}" for line in log.readlines()[-lines:])

    def send(self, which):
        self.process.send_signal(which)

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds=15):
        """SIGTERM, as a service manager sends it; returns the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not stop within {seconds} s of SIGTERM:\n{self.tail()}") from None

    def exit_code(self, seconds=15):
        """Waits until it ends by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} goes on after {seconds} s, though it must refuse:\n{self.tail()}") from None


_program = None


def program():
    """The program's path, built once a script."""
    global _program
    if _program is None:
        _program = binary()
    return _program


class Cluster:
    """Nodes that found a cluster together. As a context it starts them and ends them."""

    def __init__(self, count=3, rf=2, executable=None, **settings):
        executable = executable or program()
        self.folder = tempfile.mkdtemp(prefix="a3-")
        ports = free_ports(2 * count)
        self.nodes = [
            Node(n + 1, ports[2 * n], ports[2 * n + 1], self.folder, settings, executable) for n in range(count)
        ]
        self.rf = rf
        self.point()

    def point(self):
        """Tells every node its seeds: the mesh addresses of the others as they are now."""
        for node in self.nodes:
            seeds = [f"127.0.0.1:{other.grpc}" for other in self.nodes if other is not node]
            node.settings.update(REPLICATION_FACTOR=str(self.rf), CLUSTER_SIZE=str(len(self.nodes)))
            if seeds:
                node.settings["SEEDS"] = ",".join(seeds)

    def start(self, seconds=20):
        for node in self.nodes:
            node.start()
        self.wait_ready(seconds)
        return self

    def wait_ready(self, seconds=20):
        for node in self.nodes:
            node.wait_ready(seconds)
        self.settle(seconds)

    def settle(self, seconds=20):
        """Until every node holds all its members alive, so that a case starts from a healthy cluster."""
        try:
            wait_until("the cluster is healthy at every node", lambda: all(map(healthy, self.nodes)), seconds)
        except Failed as problem:
            told = [f"    {node.name}: {node.ask('GET', '/cluster/health').body.decode()}" for node in self.nodes]
            raise Failed("\n".join([str(problem), *told])) from None

    def others(self, node):
        return [other for other in self.nodes if other is not node]

    def drained(self, seconds=10):
        """Until no node keeps a hint; returns the seconds it took."""
        begin = time.monotonic()
        wait_until("hints drain", lambda: sum(n.hints() for n in self.nodes) == 0, seconds)
        return time.monotonic() - begin

    def close(self):
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        if os.environ.get("A3_KEEP"):
            say(f"  data and logs kept in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()


def healthy(node):
    answer = node.ask("GET", "/cluster/health")
    return answer.ok and answer.json()["status"] == "healthy"


def main(body):
    """Runs a script's body; a failed check is one line and exit code 1, not a stack trace; a skipped one exit code 77."""
    try:
        body()
    except Failed as problem:
        say(f"FAILED: {problem}")
        sys.exit(1)
    except Skipped as problem:
        say(f"SKIPPED: {problem}")
        sys.exit(77)
    except KeyboardInterrupt:
        sys.exit(130)
