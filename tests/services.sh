# Private servers for tests: sourced, not run. Everything lies under $run_dir and listens on loopback only.

say() { printf '\n== %s\n' "$*" >&2; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# The newest of what Debian installs side by side, or nothing.
rabbitmq_sbin() { ls -d /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin 2>/dev/null | sort -V | tail -1; }
postgres_bin() { ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -1 | xargs -r dirname; }

install_what_is_missing() {
    local missing=()
    if [ -z "${AMQP_URL:-}" ] || [ -z "${DATABASE_URL:-}" ]; then
        [ -n "$(rabbitmq_sbin)" ] || missing+=(rabbitmq-server)
        [ -n "$(postgres_bin)" ] || missing+=(postgresql)
    fi
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    command -v python3 >/dev/null || missing+=(python3)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    command -v systemd-analyze >/dev/null || missing+=(systemd)
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    # Packages of servers start them on the machine, which nobody asked for; unless someone else has already seen to that.
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then policy=; else printf '#!/bin/sh\nexit 101\n' | as_root sh -c "cat >$policy && chmod +x $policy"; fi
    local installed=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" >&2 || installed=$?
    [ -z "$policy" ] || as_root rm -f "$policy"
    return $installed
}

# Keeps the environment of an earlier run, for downloads are slow; pip brings it up to the pinned versions.
python_venv() {
    venv=$1
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -r tests/requirements.txt >&2
}

# Node's clients, beside the programs that use them; with the Node of the Python environment.
node_packages() {
    local folder=tests/node
    [ "$folder/node_modules/.package-lock.json" -nt "$folder/package-lock.json" ] && return
    PATH="$(cd "$venv/bin" && pwd):$PATH" npm ci --prefix "$folder" --no-fund --no-audit --silent >&2
}

spare_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits until something listens on a port, or its process is gone.
await_port() {
    local port=$1 pid=$2 log=$3
    for _ in $(seq 1200); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "nothing listens on port $port; the log ends:" >&2
    tail -30 "$log" >&2
    return 1
}

start_rabbitmq() {
    say "starting a private RabbitMQ"
    local dir=$run_dir/rabbitmq sbin port management
    sbin=$(rabbitmq_sbin) port=$(spare_port) management=$(spare_port)
    mkdir -p "$dir"/{mnesia,log,home}
    echo '[rabbitmq_management].' >"$dir/enabled_plugins"
    cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$port
management.tcp.ip = 127.0.0.1
management.tcp.port = $management
log.file.level = warning
disk_free_limit.absolute = 100MB
CONF
    cat >"$dir/env" <<ENV
export HOME=$dir/home
export RABBITMQ_CONF_ENV_FILE=/dev/null
export RABBITMQ_NODENAME=warren-test-$port@localhost
export RABBITMQ_MNESIA_BASE=$dir/mnesia
export RABBITMQ_LOG_BASE=$dir/log
export RABBITMQ_PID_FILE=$dir/pid
export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins
export RABBITMQ_CONFIG_FILE=$dir/rabbitmq
export RABBITMQ_ADVANCED_CONFIG_FILE=$dir/none
export RABBITMQ_DIST_PORT=$(spare_port)
export ERL_EPMD_PORT=$(spare_port)
export ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
ENV
    (. "$dir/env" && exec setsid "$sbin/rabbitmq-server") >"$dir/stdout" 2>&1 </dev/null &
    rabbitmq_pid=$!
    printf '#!/bin/sh\n. %s/env\nexec %s/rabbitmqctl -q "$@"\n' "$dir" "$sbin" >"$dir/rabbitmqctl"
    chmod +x "$dir/rabbitmqctl"
    await_port "$port" "$rabbitmq_pid" "$dir/stdout"
    await_port "$management" "$rabbitmq_pid" "$dir/stdout"
    export AMQP_URL="amqp://guest:guest@127.0.0.1:$port/%2f"
    export WARREN_TEST_MANAGEMENT_URL="http://guest:guest@127.0.0.1:$management"
    export WARREN_TEST_RABBITMQCTL="$dir/rabbitmqctl"
}

# Postgres refuses to run as root.
as_postgres() { if [ "$(id -u)" = 0 ]; then su postgres -s /bin/sh -c "cd / && $*"; else sh -c "$*"; fi; }

start_postgres() {
    say "starting a private Postgres"
    local dir=$run_dir/postgres bin port
    bin=$(postgres_bin) port=$(spare_port)
    mkdir -p "$dir"
    [ "$(id -u)" = 0 ] && chown postgres "$dir"
    as_postgres "$bin/initdb -D $dir/data -A trust -U postgres -E UTF8 --no-locale" >"$run_dir/initdb.log" 2>&1
    cat >>"$dir/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$dir'
max_connections = 300
# A test suite may lose its data with the power; what is measured may not.
fsync = ${postgres_fsync:-off}
CONF
    local ctl="$bin/pg_ctl -D $dir/data -l $dir/log -w"
    as_postgres "$ctl start" >/dev/null
    postgres_stop="$ctl -m immediate stop"
    # For tests that stop it, start it, and put it to sleep.
    cat >"$run_dir/pg_ctl" <<SH
#!/bin/sh
if [ "\$(id -u)" = 0 ]; then exec su postgres -s /bin/sh -c "cd / && $ctl \$*" >/dev/null 2>&1; fi
exec $ctl "\$@" >/dev/null 2>&1
SH
    chmod +x "$run_dir/pg_ctl"
    export DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres"
    export WARREN_TEST_PG_CTL="$run_dir/pg_ctl" WARREN_TEST_PG_PID_FILE="$dir/data/postmaster.pid"
}

stop_services() {
    if [ -n "${postgres_stop:-}" ]; then as_postgres "$postgres_stop" >/dev/null 2>&1 || true; fi
    if [ -n "${rabbitmq_pid:-}" ]; then
        # The script's own process and the node that it started are one session.
        kill -TERM -- "-$rabbitmq_pid" 2>/dev/null || kill -TERM "$rabbitmq_pid" 2>/dev/null || true
        for _ in $(seq 200); do kill -0 "$rabbitmq_pid" 2>/dev/null || break; sleep 0.05; done
        kill -KILL -- "-$rabbitmq_pid" 2>/dev/null || true
        (. "$run_dir/rabbitmq/env" && epmd -kill) >/dev/null 2>&1 || true
    fi
}
