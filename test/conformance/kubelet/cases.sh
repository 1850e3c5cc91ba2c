# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # variables of the script that sources this; text for shells inside
# The cases of conformance-kubelet.sh, which sources this and sets runtime and work. What a case prints has to be the same with
# every runtime; it fails where a command of it does. Output whose order counts comes in one stream.

# pod NAME makes a pod of the specification on standard input.
pod() {
	{
		cat <<-YAML
			apiVersion: v1
			kind: Pod
			metadata: {name: $1, labels: {app: $1, tier: test}, annotations: {note: hello}}
			spec:
			  runtimeClassName: $runtime
			  nodeName: node
			  terminationGracePeriodSeconds: 3
		YAML
		sed 's/^/  /'
	} | k apply -f - >/dev/null
}

ready() {
	k wait --for=condition=Ready "pod/$1" --timeout=300s >/dev/null
}

# becomes POD JSONPATH VALUE waits for a value of the pod's.
becomes() {
	k wait --for=jsonpath="$2"="$3" "pod/$1" --timeout=300s >/dev/null
}

# field POD JSONPATH prints a value of the pod's, and its path.
field() {
	printf '%s: %s\n' "$2" "$(k get pod "$1" -o jsonpath="$2")"
}

# inside POD SCRIPT runs a script in the pod's first container.
inside() {
	k exec "$1" -- sh -c "$2"
}

case_containers() {
	pod two <<-'YAML'
		volumes:
		- {name: disk, emptyDir: {}}
		- {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
		containers:
		- name: writer
		  image: busybox
		  command: [sh, -c, 'echo of the writer >/disk/file; echo in memory >/memory/file; httpd -f -p 8080 -h /disk']
		  volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]
		- name: reader
		  image: busybox
		  command: [sleep, "1000"]
		  volumeMounts: [{name: disk, mountPath: /d}, {name: memory, mountPath: /m, readOnly: true}]
	YAML
	ready two
	k exec two -c reader -- cat /d/file /m/file
	k exec two -c reader -- sh -c 'exec 2>&1; echo x >/m/no; echo exit $?'
	k exec two -c reader -- wget -q -O - http://127.0.0.1:8080/file
	k exec two -c writer -- sh -c 'dd if=/dev/zero of=/memory/big bs=1M count=16 2>&1 | grep -o "No space.*"; rm /memory/big'
	k exec two -c writer -- sh -c 'hostname; ls /proc/1/root/disk'
	field two '{.status.containerStatuses[*].ready}'
	field two '{.status.qosClass}'
}

case_init() {
	pod init <<-'YAML'
		volumes: [{name: data, emptyDir: {}}]
		initContainers:
		- {name: first, image: busybox, command: [sh, -c, 'echo first >>/data/order; echo said by first'], volumeMounts: [{name: data, mountPath: /data}]}
		- name: side
		  image: busybox
		  restartPolicy: Always
		  command: [sh, -c, 'echo side >>/data/order; sleep 1000']
		  startupProbe: {exec: {command: [grep, side, /data/order]}, periodSeconds: 1}
		  volumeMounts: [{name: data, mountPath: /data}]
		- {name: second, image: busybox, command: [sh, -c, 'echo second >>/data/order'], volumeMounts: [{name: data, mountPath: /data}]}
		containers:
		- {name: main, image: busybox, command: [sh, -c, 'cat /data/order; sleep 1000'], volumeMounts: [{name: data, mountPath: /data}]}
	YAML
	ready init
	k logs init -c first
	k logs init -c main
	field init '{.status.initContainerStatuses[*].state.terminated.exitCode}'
}

case_init_fails() {
	pod broken <<-'YAML'
		restartPolicy: Never
		initContainers: [{name: first, image: busybox, command: [sh, -c, 'exit 4']}]
		containers: [{name: main, image: busybox, command: [echo, never]}]
	YAML
	becomes broken '{.status.phase}' Failed
	field broken '{.status.initContainerStatuses[0].state.terminated.exitCode}'
	field broken '{.status.containerStatuses[0].state.waiting.reason}'
}

case_host_path() {
	local dir=$work/host/$runtime
	mkdir -p "$dir/tree/sub"
	echo of the host >"$dir/tree/file"
	echo below >"$dir/tree/sub/file"
	pod host <<-YAML
		volumes:
		- {name: tree, hostPath: {path: $dir/tree, type: Directory}}
		- {name: file, hostPath: {path: $dir/tree/file, type: File}}
		- {name: new, hostPath: {path: $dir/new, type: DirectoryOrCreate}}
		containers:
		- name: main
		  image: busybox
		  command: [sleep, "1000"]
		  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
		  volumeMounts:
		  - {name: tree, mountPath: /tree}
		  - {name: tree, mountPath: /readonly, readOnly: true}
		  - {name: tree, mountPath: /sub, subPath: sub}
		  - {name: tree, mountPath: /one, subPath: file}
		  - {name: new, mountPath: /new, subPathExpr: dir-\$(POD)}
		  - {name: file, mountPath: /etc/file}
	YAML
	ready host
	inside host 'exec 2>&1; cat /tree/file /sub/file /one /etc/file; ls /tree; echo x >/readonly/no; echo exit $?'
	inside host 'echo of the pod >/new/made; echo changed >/etc/file; chown 5:6 /new/made; chmod 640 /new/made'
	stat -c '%n %u %g %a' "$dir"/new/*/* | sed "s|$dir||"
	cat "$dir/new/dir-host/made" "$dir/tree/file"
	echo later >"$dir/tree/later"
	inside host 'cat /tree/later'
}

case_security() {
	pod secure <<-'YAML'
		securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000], seccompProfile: {type: RuntimeDefault}}
		volumes: [{name: data, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}]
		containers:
		- name: main
		  image: busybox
		  command: [sleep, "1000"]
		  securityContext:
		    readOnlyRootFilesystem: true
		    allowPrivilegeEscalation: false
		    runAsNonRoot: true
		    capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
		  volumeMounts: [{name: data, mountPath: /data}, {name: memory, mountPath: /memory}]
		- name: capable
		  image: busybox
		  command: [sleep, "1000"]
		  securityContext: {runAsUser: 0, capabilities: {add: [SYS_TIME], drop: [CHOWN]}, seccompProfile: {type: Unconfined}}
		  volumeMounts: [{name: data, mountPath: /data}]
	YAML
	ready secure
	inside secure 'id; grep -E "^(Cap|NoNewPrivs|Seccomp:)" /proc/self/status'
	inside secure 'stat -c "%n %u %g %a" /data /memory; touch /data/file /memory/file; stat -c "%n %u %g" /data/file /memory/file; exec 2>&1; touch /no; echo exit $?'
	k exec secure -c capable -- sh -c 'id; grep -E "^(Cap|NoNewPrivs|Seccomp:)" /proc/self/status; exec 2>&1; chown 5 /data/file; echo exit $?'
}

case_privileged() {
	pod strong <<-'YAML'
		containers:
		- {name: main, image: busybox, command: [sleep, "1000"], securityContext: {privileged: true}}
	YAML
	ready strong
	inside strong 'mkdir /m; mount -t tmpfs tmpfs /m && echo mounted; grep -E "^(NoNewPrivs|Seccomp:)" /proc/self/status; echo 1 >/proc/sys/net/ipv4/ip_forward && echo written'
}

case_non_root_refused() {
	pod root <<-'YAML'
		containers:
		- {name: main, image: busybox, command: [sleep, "1000"], securityContext: {runAsNonRoot: true}}
	YAML
	becomes root '{.status.containerStatuses[0].state.waiting.reason}' CreateContainerConfigError
	field root '{.status.containerStatuses[0].state.waiting.reason}'
}

case_probes() {
	pod probed <<-'YAML'
		containers:
		- name: main
		  image: busybox
		  command: [sh, -c, 'mkdir /www; echo ok >/www/ready; touch /tmp/up; httpd -f -p 80 -h /www']
		  ports: [{name: web, containerPort: 80}]
		  startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, failureThreshold: 30}
		  readinessProbe: {httpGet: {path: /ready, port: web}, periodSeconds: 1, failureThreshold: 2}
		  livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
	YAML
	ready probed
	field probed '{.status.containerStatuses[0].started}'
	inside probed 'rm /www/ready'
	k wait --for=condition=Ready=false pod/probed --timeout=300s >/dev/null
	field probed '{.status.containerStatuses[0].ready}'
	inside probed 'echo ok >/www/ready'
	ready probed
	field probed '{.status.containerStatuses[0].restartCount}'
}

case_liveness_restarts() {
	pod alive <<-'YAML'
		containers:
		- name: main
		  image: busybox
		  command: [sh, -c, 'touch /alive; sleep 1000']
		  livenessProbe: {exec: {command: [cat, /alive]}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 10}
	YAML
	ready alive
	inside alive 'rm /alive'
	becomes alive '{.status.containerStatuses[0].restartCount}' 1
	field alive '{.status.containerStatuses[0].lastState.terminated.exitCode}'
	ready alive
	inside alive 'ls /alive'
}

case_restart_always() {
	pod crash <<-'YAML'
		volumes: [{name: data, emptyDir: {}}]
		containers:
		- {name: main, image: busybox, command: [sh, -c, 'echo run >>/data/runs; cat /data/runs; exit 3'], volumeMounts: [{name: data, mountPath: /data}]}
	YAML
	becomes crash '{.status.containerStatuses[0].restartCount}' 2
	field crash '{.status.containerStatuses[0].lastState.terminated.exitCode}'
	field crash '{.status.containerStatuses[0].lastState.terminated.reason}'
	# Of the last run, which is counted before it has written anything; the one before is removed about now.
	until_true 300 sh -c "'$programs/kubectl' --kubeconfig '$work/kubeconfig' -n $runtime logs crash | grep -q run"
	k logs crash | head -n 2
}

case_restart_on_failure() {
	pod again <<-'YAML'
		restartPolicy: OnFailure
		volumes: [{name: data, emptyDir: {}}]
		containers:
		- {name: main, image: busybox, command: [sh, -c, 'mkdir /data/seen || exit 0; exit 5'], volumeMounts: [{name: data, mountPath: /data}]}
	YAML
	becomes again '{.status.phase}' Succeeded
	field again '{.status.containerStatuses[0].restartCount}'
	field again '{.status.containerStatuses[0].state.terminated.exitCode}'
}

case_termination() {
	pod last <<-'YAML'
		restartPolicy: Never
		containers:
		- {name: file, image: busybox, command: [sh, -c, 'echo -n written to the file >/dev/termination-log']}
		- {name: path, image: busybox, terminationMessagePath: /tmp/message, command: [sh, -c, 'echo -n written elsewhere >/tmp/message; exit 1']}
		- {name: logs, image: busybox, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, 'echo said at last; exit 2']}
		- {name: signal, image: busybox, command: [sh, -c, 'kill -9 $$']}
	YAML
	becomes last '{.status.phase}' Failed
	field last '{range .status.containerStatuses[*]}{.name} {.state.terminated.exitCode} {.state.terminated.message}{"\n"}{end}'
}

case_limits() {
	pod limited <<-'YAML'
		restartPolicy: Never
		containers:
		- name: main
		  image: busybox
		  command: [sh, -c, 'echo memory $MEMORY processors $CPU; tail /dev/zero']
		  resources: {limits: {memory: 48Mi, cpu: "1"}, requests: {memory: 32Mi, cpu: 100m}}
		  env:
		  - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
		  - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
	YAML
	becomes limited '{.status.phase}' Failed
	k logs limited
	field limited '{.status.containerStatuses[0].state.terminated.reason}'
	field limited '{.status.containerStatuses[0].state.terminated.exitCode}'
	field limited '{.status.qosClass}'
}

case_resize() {
	pod larger <<-'YAML'
		containers:
		- name: main
		  image: busybox
		  command: [sleep, "1000"]
		  resources: {limits: {memory: 64Mi, cpu: 500m}, requests: {memory: 64Mi, cpu: 100m}}
	YAML
	ready larger
	k patch pod larger --subresource resize --patch \
		'{"spec":{"containers":[{"name":"main","resources":{"limits":{"memory":"128Mi","cpu":"800m"}}}]}}' >/dev/null
	becomes larger '{.status.containerStatuses[0].resources.limits.memory}' 128Mi
	field larger '{.status.containerStatuses[0].resources.limits}'
	field larger '{.status.containerStatuses[0].restartCount}'
	inside larger 'dd if=/dev/zero of=/dev/null bs=90M count=1 2>/dev/null && echo used'
}

case_share_processes() {
	pod shared <<-'YAML'
		shareProcessNamespace: true
		containers:
		- {name: one, image: busybox, command: [sleep, "4321"]}
		- {name: two, image: busybox, command: [sleep, "1234"]}
	YAML
	ready shared
	k exec shared -c two -- sh -c 'cat /proc/1/comm; ps -o args | grep "^sleep" | sort'
	k exec shared -c two -- sh -c 'for p in $(pgrep -x sleep); do if grep -q 4321 /proc/$p/cmdline; then kill $p; fi; done'
	becomes shared '{.status.containerStatuses[0].restartCount}' 1
	field shared '{.status.containerStatuses[0].lastState.terminated.exitCode}'
}

case_separate_processes() {
	pod apart <<-'YAML'
		containers:
		- {name: one, image: busybox, command: [sleep, "4321"]}
		- {name: two, image: busybox, command: [sleep, "1234"]}
	YAML
	ready apart
	k exec apart -c two -- sh -c 'cat /proc/1/comm; ps -o args | grep "^sleep"'
}

case_projected() {
	k create configmap settings --from-literal=colour=red --from-literal=shape=round >/dev/null
	k create secret generic hidden --from-literal=word=xyzzy >/dev/null
	pod projected <<-'YAML'
		volumes:
		- name: all
		  projected:
		    defaultMode: 0440
		    sources:
		    - configMap: {name: settings}
		    - secret: {name: hidden, items: [{key: word, path: deep/word, mode: 0400}]}
		    - downwardAPI:
		        items:
		        - {path: labels, fieldRef: {fieldPath: metadata.labels}}
		        - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}
		    - serviceAccountToken: {path: token, expirationSeconds: 3600}
		- {name: config, configMap: {name: settings}}
		containers:
		- name: main
		  image: busybox
		  command: [sleep, "1000"]
		  resources: {limits: {memory: 64Mi}}
		  env:
		  - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
		  - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
		  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
		  - {name: NOTE, valueFrom: {fieldRef: {fieldPath: 'metadata.annotations[''note'']'}}}
		  - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
		  - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
		  volumeMounts: [{name: all, mountPath: /all}, {name: config, mountPath: /one, subPath: colour}]
	YAML
	ready projected
	inside projected 'cd /all; ls; head -n 9 colour shape deep/word labels memory; stat -L -c "%n %a" colour deep/word; head -c 3 token; echo'
	inside projected 'echo $COLOUR $WORD $NODE $NOTE $HOST; cat /one; ip -4 address show eth0 | grep -c "$IP/"'
	inside projected 'head -c 3 /var/run/secrets/kubernetes.io/serviceaccount/token; echo; ls /var/run/secrets/kubernetes.io/serviceaccount; echo x >/all/no' 2>&1 || echo "refused"
	k create configmap settings --from-literal=colour=blue --from-literal=size=small --dry-run=client -o yaml | k apply -f - >/dev/null 2>&1
	until_true 300 inside projected 'grep blue /all/colour'
	inside projected 'cd /all; ls; cat colour size; cat /one'
}

case_bidirectional() {
	local dir=$work/host/$runtime/shared
	mkdir -p "$dir"/{ours,theirs} "$dir-source/mounted by the host"
	mount --bind "$dir" "$dir"
	mount --make-shared "$dir"
	pod mounts <<-YAML
		volumes: [{name: shared, hostPath: {path: $dir, type: Directory}}]
		containers:
		- name: main
		  image: busybox
		  command: [sleep, "1000"]
		  securityContext: {privileged: true}
		  volumeMounts: [{name: shared, mountPath: /shared, mountPropagation: Bidirectional}]
	YAML
	ready mounts
	inside mounts 'mount --bind /bin /shared/theirs && ls /shared/theirs | grep -x sh'
	find "$dir/theirs" -name sh -printf '%f on the host\n'
	mount --bind "$dir-source" "$dir/ours"
	inside mounts 'ls /shared/ours'
	umount "$dir/ours"
	until_true 60 inside mounts '[ -z "$(ls /shared/ours)" ]' # a guest remembers files for a second
	inside mounts 'umount /shared/theirs; ls /shared/ours /shared/theirs'
	find "$dir" -printf '%P\n'
	k delete pod mounts --wait >/dev/null
	umount "$dir"
}

case_streams() {
	pod io <<-'YAML'
		containers:
		- {name: main, image: busybox, stdin: true, command: [sh, -c, 'echo begun; while read -r line; do echo got $line; done; sleep 1000']}
	YAML
	ready io
	echo of the client | k exec -i io -- cat
	k exec io -- sh -c 'echo out; echo err >&2; exit 7' 2>/dev/null || echo "exit $?"
	k exec io -- sh -c 'echo out; echo err >&2' 2>"$work/err" >/dev/null
	cat "$work/err"
	head -c 3000000 /dev/zero | k exec -i io -- sh -c 'head -c 3000000 | wc -c'
	k exec io -- sh -c 'head -c 3000000 /dev/zero' | wc -c
	script -qec "'$programs/kubectl' --kubeconfig '$work/kubeconfig' -n $runtime exec -it io -- sh -c 'tty >/dev/null && echo a terminal'" \
		/dev/null < <(sleep 5) | tr -d '\r'
	(echo a line && sleep 4) | timeout 30 "$programs/kubectl" --kubeconfig "$work/kubeconfig" -n "$runtime" attach -i io 2>/dev/null || :
	until_true 300 sh -c "'$programs/kubectl' --kubeconfig '$work/kubeconfig' -n $runtime logs io | grep -q got"
	k logs io
	k logs io --tail=1
	echo to copy >"$work/host/$runtime/copy"
	k cp "$work/host/$runtime/copy" io:/tmp/copy
	inside io 'cat /tmp/copy'
	k cp io:/tmp/copy "$work/host/$runtime/back" >/dev/null
	cat "$work/host/$runtime/back"
}

case_forwarded() {
	pod web <<-'YAML'
		containers:
		- {name: main, image: nginx, ports: [{containerPort: 80, hostPort: 8099}], readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}
	YAML
	ready web
	k port-forward pod/web 18080:80 >"$work/forward" 2>&1 &
	local forward=$!
	until_true 300 busybox wget -q -O /dev/null http://127.0.0.1:18080/
	busybox wget -q -O - http://127.0.0.1:18080/
	busybox wget -q -O - http://127.0.0.1:18080/
	kill "$forward"
	wait "$forward" || :
	busybox wget -q -O - "http://$(k get pod web -o jsonpath='{.status.podIP}')/"
	busybox wget -q -O - "http://$address:8099/"
	k get --raw "/api/v1/namespaces/$runtime/pods/web:80/proxy/"
}

case_hooks() {
	local dir=$work/host/$runtime/hooks
	pod hooks <<-YAML
		volumes: [{name: host, hostPath: {path: $dir, type: DirectoryOrCreate}}]
		containers:
		- name: main
		  image: busybox
		  command: [sh, -c, 'trap "echo ended >>/host/told; exit 0" TERM; while :; do sleep 0.1; done']
		  volumeMounts: [{name: host, mountPath: /host}]
		  lifecycle:
		    postStart: {exec: {command: [sh, -c, 'echo started >>/host/told']}}
		    preStop: {exec: {command: [sh, -c, 'echo stopping >>/host/told']}}
	YAML
	ready hooks
	k delete pod hooks --grace-period=20 --timeout=300s >/dev/null
	cat "$dir/told"
}

case_network() {
	pod named <<-'YAML'
		hostname: name
		subdomain: sub
		hostAliases: [{ip: 10.1.2.3, hostnames: [alias, other]}]
		dnsPolicy: None
		dnsConfig: {nameservers: [10.9.9.9], searches: [example], options: [{name: ndots, value: "2"}]}
		securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}, {name: kernel.shm_rmid_forced, value: "1"}]}
		containers:
		- {name: main, image: busybox, command: [sleep, "1000"]}
	YAML
	ready named
	inside named 'hostname; cat /etc/resolv.conf; grep -E "alias|name" /etc/hosts | sed "s/^10.88[^\t]*/IP/"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced' | sed "s/sub.$runtime.svc/sub.NAMESPACE.svc/"
}

case_ephemeral() {
	pod target <<-'YAML'
		containers:
		- {name: main, image: busybox, command: [sleep, "4321"]}
	YAML
	ready target
	k debug target -c look --image=busybox --target=main --profile=general -- \
		sh -c 'ps -o args | grep "^sleep"; readlink -f /proc/1/root >/dev/null; ls /proc/1/root/bin/sh; hostname' >/dev/null 2>&1
	becomes target '{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}' 0
	k logs target -c look
}

case_image_volume() {
	pod imaged <<-'YAML'
		volumes: [{name: image, image: {reference: nginx}}]
		containers:
		- {name: main, image: busybox, command: [sleep, "1000"], volumeMounts: [{name: image, mountPath: /image}]}
	YAML
	ready imaged
	inside imaged 'exec 2>&1; cat /image/usr/share/nginx/html/index.html; touch /image/no; echo exit $?'
}

case_summary() {
	pod busy <<-'YAML'
		containers:
		- {name: main, image: busybox, command: [sh, -c, 'while :; do :; done'], resources: {limits: {cpu: 200m, memory: 64Mi}}}
	YAML
	ready busy
	# shellcheck disable=SC2317 # until_true calls it
	measured() {
		k get --raw /api/v1/nodes/node/proxy/stats/summary | jq -e --arg ns "$runtime" \
			'.pods[] | select(.podRef.namespace == $ns) | .containers[] | select(.cpu.usageCoreNanoSeconds > 100000000 and .memory.workingSetBytes > 0)'
	}
	until_true 300 measured
	k get --raw /api/v1/nodes/node/proxy/stats/summary | jq --arg ns "$runtime" '.pods[] | select(.podRef.namespace == $ns)
		| .containers[] | {name, cpu: (.cpu.usageCoreNanoSeconds > 0), memory: (.memory.workingSetBytes > 0), disk: (.rootfs.usedBytes != null)}'
}

case_kubelet_restarts() {
	pod stays <<-'YAML'
		containers:
		- {name: main, image: busybox, command: [sh, -c, 'touch /since; sleep 1000']}
	YAML
	ready stays
	kubelet_stop
	kubelet_start
	until_true 300 k get --raw /api/v1/nodes/node/proxy/healthz
	sleep 3
	inside stays 'ls /since'
	field stays '{.status.containerStatuses[0].restartCount}'
}

case_sandbox_killed() {
	pod lost <<-'YAML'
		volumes: [{name: data, emptyDir: {}}]
		containers:
		- {name: main, image: busybox, command: [sh, -c, 'echo run >>/data/runs; sleep 1000'], volumeMounts: [{name: data, mountPath: /data}]}
	YAML
	ready lost
	until_true 300 inside lost 'test -s /data/runs'
	local ctr=("$HUSK_CONTAINERD/bin/ctr" -a "$work/sock" -n k8s.io) id
	id=$("${ctr[@]}" containers list -q 'labels."io.cri-containerd.kind"==sandbox,labels."io.kubernetes.pod.name"==lost')
	kill -9 "$("${ctr[@]}" tasks list | awk -v id="$id" '$1 == id { print $2 }')"
	becomes lost '{.status.containerStatuses[0].restartCount}' 1
	ready lost
	until_true 300 inside lost 'test "$(wc -l </data/runs)" = 2'
	inside lost 'cat /data/runs'
}
