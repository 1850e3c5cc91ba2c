package bench

import (
	"math"
	"slices"
)

// Summary is what samples say together.
type Summary struct {
	N    int     `json:"n"` // samples; the rest means nothing without any
	Min  float64 `json:"min"`
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// Summarize describes samples, which it leaves in their order. Percentiles are of values at and above which
// that part lies on the bad side: with higherIsBetter, 95 of 100 samples are at least P95.
func Summarize(samples []float64, higherIsBetter bool) Summary {
	if len(samples) == 0 {
		return Summary{}
	}
	sorted := slices.Sorted(slices.Values(samples))
	if higherIsBetter {
		slices.Reverse(sorted)
	}
	var sum float64
	for _, s := range sorted {
		sum += s
	}
	return Summary{
		N: len(sorted), Min: slices.Min(sorted), Max: slices.Max(sorted), Mean: sum / float64(len(sorted)),
		P50: percentile(sorted, 50), P95: percentile(sorted, 95), P99: percentile(sorted, 99),
	}
}

// percentile is the value below which p percent of ordered values lie, interpolated between neighbours.
func percentile(ordered []float64, p float64) float64 {
	at := p / 100 * float64(len(ordered)-1)
	below := int(math.Floor(at))
	if below+1 >= len(ordered) {
		return ordered[len(ordered)-1]
	}
	part := at - float64(below)
	return ordered[below]*(1-part) + ordered[below+1]*part
}

// Ratio says how much worse value is than base: 1 is the same, 2 is twice as long or half as many, less
// than 1 is better. It is 0 where there is nothing to compare.
func Ratio(value, base float64, higherIsBetter bool) float64 {
	if higherIsBetter {
		value, base = base, value
	}
	if value <= 0 || base <= 0 {
		return 0
	}
	return value / base
}
