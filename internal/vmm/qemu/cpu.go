package qemu

import "strings"

// emulatedFeatures are what an emulated x86 processor has: the level x86-64-v3, which distributions build for, and what
// Linux or a common library takes where it is there. QEMU 7.2 knows and emulates each. Left out is what only costs time
// when it is emulated. String instructions are slower than the loops they replace, and Linux takes the loops only where
// it sees none of erms, fsrm, fzrm, fsrs and fsrc: with fsrm alone its memmove never ends. Five levels of page tables
// (la57) are walked in five steps, and nested guests (svm) are of no use.
var emulatedFeatures = []string{
	// x86-64
	"fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36",
	"clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm",
	// -v2
	"pni", "ssse3", "cx16", "sse4.1", "sse4.2", "popcnt", "lahf-lm",
	// -v3
	"xsave", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe",
	// more for programs
	"aes", "pclmulqdq", "vaes", "rdrand", "rdtscp", "adx", "clflushopt", "clwb", "fsgsbase", "pku", "sse4a", "mmxext",
	"3dnow", "3dnowext",
	// more for the kernel
	"hypervisor", "pdpe1gb", "smep", "smap", "umip", "pks", "xsaveopt", "xgetbv1", "arat", "cr8legacy", "monitor", "ss", "acpi",
}

// emulatedCPU is an x86 processor of which husk names every feature. One of QEMU's that changes with its version, like
// max, has one day what the guest's kernel cannot have alone, or what is slow. It is one of AMD's family 6, of which
// Linux works around no errata; xlevel is the leaf that says how wide addresses are.
func emulatedCPU() string {
	return "base,vendor=AuthenticAMD,family=6,model=107,stepping=1,model-id=QEMU TCG CPU,level=0xd,xlevel=0x80000008,+" +
		strings.Join(emulatedFeatures, ",+")
}
