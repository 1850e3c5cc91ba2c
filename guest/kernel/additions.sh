#!/bin/bash
# Adds to an unpacked kernel source (SOURCEDIR) what saves an emulated guest time when it boots, and what makes a
# container see no more than runc's does. Each addition obeys a parameter of the kernel's command line, is needed by
# nothing, and is made at a place that is found by what is written there: a source that has no such place does without
# it, and is told of on stderr.
#   additions.sh SOURCEDIR
# The added lines are husk's own; in a kernel they are under the kernel's licence, GPL-2.0-only.
set -euo pipefail
cd "$1"

# before FILE FUNCTION ANCHOR adds what it reads before the first line that holds ANCHOR, after the one that begins
# the body of FUNCTION (empty: after the start of the file).
before() {
	local file=$1 function=$2 anchor=$3 text
	text=$(cat)
	awk -v function_="$function" -v anchor="$anchor" -v text="$text" '
		function_ == "" || (index($0, function_ "(") && !/[;}]$/) { seen = 1 }
		seen && !done && index($0, anchor) { print text; done = 1 }
		{ print }
		END { exit !done }
	' "$file" >"$file.new" || {
		rm "$file.new"
		echo "guest kernel: no place for an addition in $file: ${loss:-emulated guests will boot more slowly}" >&2
		return
	}
	mv "$file.new" "$file"
}

# lapic_timer_khz=1000000 (QEMU's): where no other timer is to be had the kernel measures its local timer for 100 ms,
# 200 ms without an ACPI timer to check by.
if grep -q '^unsigned int lapic_timer_period' arch/x86/kernel/apic/apic.c; then
	cat >>arch/x86/kernel/apic/apic.c <<-'C'

		/* For whoever knows the frequency: measuring it takes 100 ms. */
		static int __init parse_lapic_timer_khz(char *arg)
		{
			unsigned int khz;

			if (kstrtouint(arg, 0, &khz))
				return -EINVAL;
			lapic_timer_period = div_u64((u64)khz * 1000, HZ);
			return 0;
		}
		early_param("lapic_timer_khz", parse_lapic_timer_khz);
	C
else
	echo "guest kernel: no place for lapic_timer_khz: emulated guests will boot more slowly" >&2
fi

# tsc_early_khz: a machine without the old timers answers the measurement of the processor with nothing, after 6 ms.
before arch/x86/kernel/tsc.c determine_cpu_tsc_frequencies 'if (early) {' <<-'C'
	/* Nobody needs the processor's own frequency. */
	if (early && tsc_early_khz)
		cpu_khz = tsc_khz = tsc_early_khz;
	else
C

# mitigations=off: every return and indirect call of the kernel leads to a thunk, until the kernel has decoded and
# patched the 40,000 places, which takes an emulated processor 80 ms. Without mitigations the thunks are plain jumps
# and work as well. Hardware does not need this; there mitigations stay on.
thunks=arch/x86/kernel/alternative.c
for function in apply_retpolines apply_returns; do
	before "$thunks" "$function" 'for (' <<-'C'
		if (cpu_mitigations_off()) /* thunks do nothing but what they stand for */
			return;

	C
done
before "$thunks" '' '#include' <<-'C'
	#include <linux/cpu.h>
C
# The thunk of returns becomes an alarm once all have been patched. Where nothing is to be patched it has to stay.
thunk=arch/x86/lib/retpoline.S
if grep -q warn_thunk_thunk "$thunk"; then
	sed -i 's/"jmp warn_thunk_thunk", X86_FEATURE_ALWAYS/"jmp warn_thunk_thunk", X86_FEATURE_RETHUNK/' "$thunk"
	grep -q 'warn_thunk_thunk", X86_FEATURE_RETHUNK' "$thunk" || {
		echo "guest kernel: no place for an addition in $thunk: emulated guests would not boot" >&2
		exit 1
	}
fi

# keep_initmem: the memory of the code that runs at boot is poisoned, freed, and cleared by its next user, and an
# emulator that has translated code of a page takes a slow path for every store to it: 50 ms, for 1 MiB.
pages=arch/x86/mm/init.c
before "$pages" free_initmem 'free_kernel_image_pages(' <<-'C'
	if (keep_initmem) {
		unsigned long begin = (unsigned long)&__init_begin;

		set_memory_nx(begin, ((unsigned long)&__init_end - begin) >> PAGE_SHIFT);
		return;
	}

C
if grep -q 'if (keep_initmem)' "$pages"; then
	before "$pages" '' 'void __ref free_initmem(' <<-'C'
		static bool keep_initmem __ro_after_init;
		static int __init parse_keep_initmem(char *arg)
		{
			keep_initmem = true;
			return 0;
		}
		early_param("keep_initmem", parse_keep_initmem);

	C
fi

# virtio_net.given_mac=1: the card of a saved guest gets its MAC address when that wakes up, and would show the one that it
# was saved with as its permanent address. What it stands for has none.
card=drivers/net/virtio_net.c loss='containers will see permanent MAC addresses'
before "$card" virtnet_probe 'Set up our device-specific information' <<-'C'
	if (given_mac)
		dev->addr_assign_type = NET_ADDR_SET;

C
if grep -q 'if (given_mac)' "$card"; then
	before "$card" '' 'module_param(napi_weight' <<-'C'
		static bool given_mac;
		module_param(given_mac, bool, 0444);

	C
fi
