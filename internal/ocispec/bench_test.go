package ocispec

import "testing"

// BenchmarkPlan is what the owner computes of a bundle before anything is started.
func BenchmarkPlan(b *testing.B) {
	dir := bundle(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		loaded, err := Load(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := loaded.ResolveRoot(); err != nil {
			b.Fatal(err)
		}
		if _, err := MakePlan(loaded, PlanOptions{ShareDir: "/guest/share", Name: "c", MemoryDir: "/guest/memory"}); err != nil {
			b.Fatal(err)
		}
	}
}
