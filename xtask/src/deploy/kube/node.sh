#!/bin/bash
# A Kubernetes cluster of one node on this machine: `DIR=... BIN=... node.sh up|load ARCHIVE...|restart|down`.
#
# Mounts and addresses are in a mount and a network namespace of their own, so nothing of the machine is changed and no
# port collides. Processes are those of the machine: what runs in pods is seen by profilerd, and what runs beside them.
#
# DIR keeps the state of the cluster, its logs (NAME.log) and process ids; BIN has the programs.
set -eu
DIR=$(realpath -m "${DIR:?}") BIN=$(realpath "${BIN:?}") W=$PWD
mkdir -p "$DIR"
cd "$DIR"
API=https://127.0.0.1:443

inside() { # in the namespaces, with the credentials of an administrator
    nsenter -t "$(cat "$DIR/ns.pid")" --mount --net --wd=. -- env KUBECONFIG="$DIR/admin.kubeconfig" PATH="$BIN:$PATH" "$@"
}

start() { # NAME PROGRAM ARGUMENTS...
    local name=$1
    shift
    nsenter -t "$(cat "$DIR/ns.pid")" --mount --net --wd=. -- setsid "$@" >>"$name.log" 2>&1 </dev/null &
    echo $! >"$name.pid"
}

# The kubelet writes these settings of the kernel; it gets files instead.
SYSCTLS="vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1"
# Folders of the machine that the node's parts write to; they get empty ones instead.
FOLDERS="/var/lib/kubelet /var/lib/cni /var/log/containers /run/netns /run/containerd"

namespaces() {
    mkdir -p cni podlogs kubelet volplug fake
    # shellcheck disable=SC2086
    mkdir -p $FOLDERS
    setsid unshare --mount --net --propagation private bash -c "
        mount --make-rshared /
        for folder in $FOLDERS; do mount -t tmpfs t \$folder; done
        for setting in $SYSCTLS; do
            file=fake/\$(basename \${setting%=*}); echo \${setting#*=} >\$file
            mount --bind \$file /proc/sys/\${setting%=*}
        done
        ip link set lo up; ip addr add 10.77.0.1/32 dev lo; ip addr add 10.96.0.1/32 dev lo
        touch ready; exec sleep infinity" </dev/null >ns.log 2>&1 &
    echo $! >ns.pid
    until [ -e ready ]; do sleep 0.1; done
}

credentials() {
    quiet() { openssl "$@" 2>/dev/null; }
    quiet req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-ca -keyout ca.key -out ca.crt
    quiet req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout api.key -out api.csr
    quiet x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out api.crt \
        -extfile <(echo subjectAltName=IP:127.0.0.1,IP:10.96.0.1,IP:10.77.0.1,DNS:kubernetes.default.svc)
    quiet genrsa -out sa.key 2048
    quiet rsa -in sa.key -pubout -out sa.pub
    printf '%s\n' 'admintok,admin,1,"system:masters"' 'nodetok,system:node:node1,2,"system:nodes"' \
        'kcmtok,system:kube-controller-manager,3' 'schedtok,system:kube-scheduler,4' >tokens.csv
    for user in admin node kcm sched; do
        cat >$user.kubeconfig <<YAML
{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: t, user: u}}],
 clusters: [{name: t, cluster: {server: '$API', certificate-authority: $DIR/ca.crt}}],
 users: [{name: u, user: {token: ${user}tok}}]}
YAML
    done
}

settings() {
    cat >containerd.toml <<TOML
version = 2
root = "$DIR/containerd/root"
state = "$DIR/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "$DIR/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$DIR/cni"
TOML
    cat >cni/10-pods.conflist <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
 "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "$DIR/cnidata", "ranges": [[{"subnet": "10.78.0.0/24"}]],
 "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
    cat >kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 10.77.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
maxOpenFiles: 10000
enforceNodeAllocatable: []
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
podLogsDir: $DIR/podlogs
volumePluginDir: $DIR/volplug
containerRuntimeEndpoint: unix://$DIR/containerd.sock
YAML
}

api() {
    start api "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=443 \
        --advertise-address=10.77.0.1 --tls-cert-file=api.crt --tls-private-key-file=api.key \
        --token-auth-file=tokens.csv --authorization-mode=Node,RBAC --service-account-key-file=sa.pub \
        --service-account-signing-key-file=sa.key --service-account-issuer=https://kubernetes.default.svc \
        --service-cluster-ip-range=10.96.0.0/24 --allow-privileged=true --kubelet-preferred-address-types=InternalIP
    for _ in $(seq 480); do
        inside curl -sk -m 2 -H 'Authorization: Bearer admintok' $API/readyz | grep -qx ok && return 0
        sleep 0.25
    done
    return 1
}

options() { # of a part that talks to the API server as USER
    echo --{,authentication-,authorization-}kubeconfig="$1".kubeconfig --bind-address=127.0.0.1 --leader-elect=false
}

stop() {
    kill "$(cat "$1.pid")" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$(cat "$1.pid")" 2>/dev/null || return 0
        sleep 0.1
    done
}

case $1 in
up)
    namespaces
    credentials
    settings
    start containerd containerd -c containerd.toml
    start etcd "$BIN/etcd" --data-dir etcd --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
        --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
    api
    # shellcheck disable=SC2046
    start kcm "$BIN/kube-controller-manager" $(options kcm) --service-account-private-key-file=sa.key \
        --root-ca-file=ca.crt --use-service-account-credentials
    # shellcheck disable=SC2046
    start sched "$BIN/kube-scheduler" $(options sched)
    start kubelet "$BIN/kubelet" --config=kubelet.yaml --kubeconfig=node.kubeconfig --hostname-override=node1 \
        --node-ip=10.77.0.1 --root-dir="$DIR/kubelet"
    for _ in $(seq 240); do
        inside kubectl get node node1 2>/dev/null | grep -q ' Ready' && exit 0
        sleep 0.5
    done
    exit 1
    ;;
restart) # the API server, with a history that begins now: watches of before have expired
    stop api
    revision=$(inside curl -s http://127.0.0.1:2379/v3/kv/range -d '{"key":"AA=="}' |
        sed -E 's/.*"revision":"([0-9]+)".*/\1/')
    inside curl -sf -o /dev/null http://127.0.0.1:2379/v3/kv/compaction -d "{\"revision\":\"$revision\",\"physical\":true}"
    api
    ;;
load)
    shift
    cd "$W"
    for archive in "$@"; do
        inside ctr -a "$DIR/containerd.sock" -n k8s.io images import "$archive"
    done
    ;;
down)
    inside timeout 60 kubectl delete ds,deploy,pod --all -A --wait=true --grace-period=2 || true
    for part in kubelet sched kcm api etcd containerd ns; do stop $part; done
    for group in /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/*/k8s.io /sys/fs/cgroup/kubepods; do
        [ -d "$group" ] && find "$group" -depth -type d -exec rmdir {} \; || true
    done
    rm -f ready
    rmdir /var/lib/kubelet /var/lib/cni /var/log/containers /run/containerd 2>/dev/null || true
    ;;
esac
