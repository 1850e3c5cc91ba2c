package e2e

// podmanDevices are block devices of the host, which are the guest's disks: of a container, of one that may only read, of
// a device that cannot be written to, and of one that joins a pod.
var podmanDevices = []line{
	{"block devices", `volume written 640 block special file
volume refused
volume refused
7
volume added
0`, `truncate -s 8M vol; printf volume | dd of=vol conv=notrunc 2>/dev/null; l=$(losetup -f --show $D/vol); r=$(losetup -r -f --show $D/vol)
		p run --rm $N --device $l:/dev/vol demo sh -c 'printf written | dd of=/dev/vol bs=512 seek=1 2>/dev/null; chmod 640 /dev/vol
		echo $(head -c 6 /dev/vol) $(dd if=/dev/vol bs=512 skip=1 count=1 2>/dev/null | head -c 7) $(stat -c "%a %F" /dev/vol)'
		p run --rm $N --device $l:/dev/vol:r demo sh -c 'echo $(head -c 6 /dev/vol) $(echo x 2>/dev/null >/dev/vol || echo refused)'
		p run --rm $N --device $r:/dev/vol demo sh -c 'echo $(head -c 6 /dev/vol) $(dd if=/dev/zero of=/dev/vol count=1 conv=fsync 2>/dev/null || echo refused)'
		dd if=$l bs=512 skip=1 count=1 2>/dev/null | head -c 7 | wc -c
		p pod create --name $A >/dev/null; p run -d --pod $A demo sleep 1000 >/dev/null
		echo $(p run --rm --pod $A --device $l:/dev/vol demo sh -c 'printf added | dd of=/dev/vol bs=512 seek=2 conv=fsync 2>/dev/null; head -c 6 /dev/vol') $(dd if=$l bs=512 skip=2 count=1 2>/dev/null | head -c 5)
		find /proc/[0-9]*/fd -lname $l 2>/dev/null | wc -l; p pod rm -f -t 0 $A >/dev/null; losetup -d $l; losetup -d $r; rm vol`},
}
