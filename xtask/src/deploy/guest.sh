#!/bin/sh
# Runs in the machine of `cargo xtask test --packages`, where systemd has booted: installs, configures, runs and removes
# the package. Prints its results as cargo's test runner does.
exec >/dev/ttyS0 2>&1 </dev/null
export LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
passed=0
failed=
count=0

check() {
    name=package::$1
    shift
    if "$@" >/run/check 2>&1; then
        passed=$((passed + 1))
        echo "test $name ... ok"
    else
        count=$((count + 1))
        failed="$failed    $name
"
        echo "test $name ... FAILED"
        cat /run/check
        journalctl --no-pager --lines=15 --unit=profilerd
    fi
}

# Asks again, for at most a minute.
eventually() {
    for _ in $(seq 60); do
        "$@" && return 0
        sleep 1
    done
    return 1
}

answers() { # PATH STATUS
    python3 - "$1" "$2" <<'PYTHON'
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen("http://127.0.0.1:9464" + sys.argv[1], timeout=10)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read()[:500])
sys.exit(answer.status != int(sys.argv[2]))
PYTHON
}

is_disabled() {
    [ "$(systemctl is-enabled profilerd)" = disabled ] && [ "$(systemctl is-active profilerd)" = inactive ]
}

refuses_to_run_unconfigured() {
    systemctl start profilerd && return 1
    systemctl stop profilerd
    journalctl --no-pager --unit=profilerd | grep oap.backends
}

configure() {
    sed -i 's/^  backends: \[\]/  backends: [127.0.0.1:11800]/' /etc/profilerd/profilerd.yaml
    [ "$(stat -c %a /etc/profilerd/profilerd.yaml)" = 600 ] && profilerd config check /etc/profilerd/profilerd.yaml
}

is_healthy() {
    systemctl status --no-pager profilerd && [ "$(systemctl is-active profilerd)" = active ]
}

has_only() { # MASK of capabilities
    status=/proc/$(systemctl show --property=MainPID --value profilerd)/status
    cat "$status"
    # The bounding set stays as the unit has it: reducing it would take a capability of its own.
    grep -q "^CapPrm:.*$1\$" "$status" && grep -q "^CapEff:.*$1\$" "$status" &&
        grep -q '^NoNewPrivs:.*1$' "$status" && grep -q '^Seccomp:.*2$' "$status"
}

# CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYSLOG, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE. This kernel asks for
# CAP_SYS_ADMIN as well, unless its administrator does not want that.
has_few_privileges() {
    paranoid=/proc/sys/kernel/perf_event_paranoid
    [ "$(cat $paranoid)" = 3 ] && eventually has_only 000001c400280004 || return 1
    echo 2 >$paranoid && systemctl restart profilerd && eventually has_only 000001c400080004 || return 1
    echo 3 >$paranoid && systemctl restart profilerd && eventually has_only 000001c400280004
}

# The unit with its own OAP, so that a task runs with the unit's privileges.
becomes_standalone() {
    mkdir -p /etc/systemd/system/profilerd.service.d
    cat >/etc/systemd/system/profilerd.service.d/standalone.conf <<'UNIT'
[Service]
ExecStart=
ExecStart=/usr/bin/profilerd standalone --config /etc/profilerd/profilerd.yaml --data-dir :memory:
UNIT
    systemctl daemon-reload && systemctl restart profilerd && eventually answers /readyz 200
}

profiles_a_service() {
    systemd-run --unit=shop --setenv=SAMPLE_SERVICE_METHOD_MS=200 --property=StandardOutput=file:/run/shop \
        python3 -u /sample_service.py
    eventually grep -q . /run/shop
    systemd-run --unit=client python3 -c "
import urllib.request
while True: urllib.request.urlopen('http://127.0.0.1:$(head -1 /run/shop)/', data=b'{}').read()"
    eventually sh -c 'profilerd ps | grep -w shop'
    profilerd task create --service shop --endpoint POST:/ --duration 1m --wait
    profilerd task result --format tree | tee /run/tree
    systemctl stop client shop
    grep do_POST /run/tree && grep time.sleep /run/tree
}

reloads() {
    systemctl reload profilerd && eventually answers /healthz 200 && is_healthy
}

is_kept_by_an_upgrade() {
    echo '# changed' >>/etc/profilerd/profilerd.yaml
    dpkg --install /profilerd.deb && tail -1 /etc/profilerd/profilerd.yaml | grep '# changed' && is_healthy &&
        [ "$(systemctl show --property=NRestarts --value profilerd)" = 0 ]
}

leaves_only_its_configuration() {
    rm -r /etc/systemd/system/profilerd.service.d
    dpkg --remove profilerd
    readlink /proc/[0-9]*/exe | grep profilerd && return 1
    left | tee /run/left
    [ "$(tr '\n' ' ' </run/left)" = "/etc/profilerd /etc/profilerd/profilerd.yaml " ]
}

# Files of the package; whether a removed service is enabled is noted by Debian until it is purged.
left() {
    find / -xdev -name '*profilerd*' -not -path '/run/*' -not -path '/var/log/*' -not -path '/var/lib/dpkg/*' \
        -not -path '/etc/systemd/*' -not -path '/var/lib/systemd/*' -not -path /profilerd.deb | sort
}

leaves_nothing_when_purged() {
    dpkg --purge profilerd
    left | tee /run/left
    [ ! -s /run/left ] && [ ! -e /etc/systemd/system/profilerd.service ]
}

check it_installs dpkg --install /profilerd.deb
check it_is_disabled is_disabled
check it_refuses_to_run_unconfigured refuses_to_run_unconfigured
check it_is_configured configure
check it_starts systemctl enable --now profilerd
check it_is_healthy is_healthy
check it_answers answers /healthz 200
check it_is_not_ready_without_an_oap answers /readyz 503
check it_has_few_privileges has_few_privileges
check doctor_is_content profilerd doctor
check it_becomes_standalone becomes_standalone
check it_profiles_a_service profiles_a_service
check it_reloads reloads
check an_upgrade_keeps_the_configuration is_kept_by_an_upgrade
check it_stops systemctl stop profilerd
check it_leaves_only_its_configuration leaves_only_its_configuration
check it_leaves_nothing_when_purged leaves_nothing_when_purged

[ $count = 0 ] || printf 'failures:\n%s\n' "$failed"
echo "test result: ok. $passed passed; $count failed; 0 ignored"
echo "profilerd-vm: exit status $count"
