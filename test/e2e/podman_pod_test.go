package e2e

// podmanPods are pods, and containers that join others.
var podmanPods = []line{
	{"pod", `web a-[a-z]+ shared
a-[a-z]+ Running 3
Paused Paused Paused
Up Up Up
shared
77
Exited 7
Running Running
none`, `p pod create --name $A >/dev/null
		p run -d --pod $A --name $A-web demo sh -c 'echo shared >/dev/shm/f; mkdir /w; echo web >/w/i; trap exit TERM; httpd -f -p 80 -h /w & wait' >/dev/null
		p run -d --pod $A --name $A-b --memory 100m demo sh -c 'trap "exit 7" TERM; while :; do sleep 0.1; done' >/dev/null
		p exec $A-b sh -c 'i=0; until x=$(wget -qO- http://localhost/i 2>/dev/null) || [ $((i+=1)) = 50 ]; do sleep 0.2; done; echo $x $(hostname) $(cat /dev/shm/f)'
		p pod ps --format '{{.Name}} {{.Status}} {{.NumberOfContainers}}'
		first() { echo $(p ps -a --filter pod=$A --format '{{.Status}}' | sed 's/ .*//'); }
		p pod pause $A >/dev/null; first; p pod unpause $A >/dev/null; first
		p restart -t 5 $A-b >/dev/null; p exec $A-b cat /dev/shm/f; p run --rm --pod $A demo sh -c 'exit 77'; echo $?
		p pod stop -t 5 $A >/dev/null; echo $(p pod ps --format '{{.Status}}') $(p inspect -f '{{.State.ExitCode}}' $A-b)
		p pod start $A >/dev/null; a=$(p pod ps --format '{{.Status}}'); p pod restart $A >/dev/null; echo $a $(p pod ps --format '{{.Status}}')
		p pod rm -f -t 0 $A >/dev/null; p pod exists $A || echo none`},
	{"kill a pod", "running 127 running\nExited\nnone", `p pod create --name $A >/dev/null; p run -d --pod $A --name $A-m demo sleep 1000 >/dev/null
		a=$(p inspect -f '{{.State.Status}}' $A-m); p run --rm --pod $A demo no-such 2>/dev/null; echo $a $? $(p inspect -f '{{.State.Status}}' $A-m)
		p pod kill $A >/dev/null; p wait $A-m >/dev/null; i=0; until [ "$(p pod ps --format '{{.Status}}')" = Exited ] || [ $((i+=1)) = 50 ]; do sleep 0.1; done
		p pod ps --format '{{.Status}}'; p pod rm $A >/dev/null; p pod exists $A || echo none`},
	{"join a container", "web base\nhttpd -f -p 80 -h /w can\nx\nrunning", `p run -d --name $A --hostname base demo sh -c 'mkdir /w; echo web >/w/i; exec httpd -f -p 80 -h /w' >/dev/null; j=container:$A
		p run --rm --network $j --uts $j demo sh -c 'i=0; until x=$(wget -qO- http://localhost/i 2>/dev/null) || [ $((i+=1)) = 50 ]; do sleep 0.2; done; echo $x $(hostname)'
		p run --rm --network $j --pid $j demo sh -c 'echo $(tr "\0" " " </proc/1/cmdline) $(kill -0 1 && echo can)'
		p run --rm --network $j --ipc $j demo touch /dev/shm/x; p exec $A ls /dev/shm; p inspect -f '{{.State.Status}}' $A; p rm -t 0 -f $A >/dev/null`},
	{"play kube", "prepared late kubehost\nRunning late\nnone", `cat >kube.yaml <<-end
		apiVersion: v1
		kind: Pod
		metadata: {name: $A, annotations: {io.podman.annotations.init.container.type: always}}
		spec:
		  restartPolicy: OnFailure # with Always, podman 4.3 starts the init container again and again
		  hostname: kubehost
		  terminationGracePeriodSeconds: 2
		  volumes: [{name: scratch, emptyDir: {}}]
		  initContainers:
		  - {name: prepare, image: localhost/demo, imagePullPolicy: Never, volumeMounts: [{name: scratch, mountPath: /data}],
		     command: [/bin/sh, -c, echo prepared >/data/i]}
		  containers:
		  - {name: web, image: localhost/demo, imagePullPolicy: Never, volumeMounts: [{name: scratch, mountPath: /data}],
		     command: [/bin/sh, -c, trap exit TERM; busybox httpd -f -p 80 -h /data & wait], env: [{name: PATH, value: /bin}]}
		  - {name: client, image: localhost/demo, imagePullPolicy: Never, volumeMounts: [{name: scratch, mountPath: /d}],
		     command: [/bin/sh, -c, trap exit TERM; while :; do sleep 0.2; done], env: [{name: PATH, value: /bin}], resources: {limits: {memory: 64Mi}}}
		end
		p play kube kube.yaml >/dev/null 2>&1
		p exec $A-client sh -c 'get() { busybox wget -qO- http://127.0.0.1/$1; }; i=0; until x=$(get i 2>/dev/null) || [ $((i+=1)) = 50 ]; do sleep 0.2; done; echo late >/d/l; echo $x $(get l) $(hostname)'
		p pod stop -t 2 $A >/dev/null; p pod start $A >/dev/null; echo $(p pod ps --format '{{.Status}}') $(p exec $A-client cat /d/l)
		p play kube --down kube.yaml >/dev/null; p pod exists $A || echo none; p volume rm -a -f >/dev/null`},
	{"generate kube", "Running up", `p pod create --name $A >/dev/null
		p run -d --pod $A --name m-$A -e PATH=/bin demo /bin/sh -c 'trap exit TERM; while :; do sleep 0.2; done' >/dev/null
		p generate kube $A >generated.yaml 2>/dev/null; p pod rm -f -t 0 $A >/dev/null; p play kube generated.yaml >/dev/null 2>&1
		echo $(p pod ps --format '{{.Status}}') $(p exec $A-m-$A /bin/echo up); p pod rm -f -t 0 $A >/dev/null`},
}
