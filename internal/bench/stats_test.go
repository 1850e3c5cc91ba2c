package bench

import (
	"math"
	"slices"
	"testing"
)

func TestSummarize(t *testing.T) {
	hundred := make([]float64, 101)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		name    string
		samples []float64
		higher  bool
		want    Summary
	}{
		{"none", nil, false, Summary{}},
		{"one", []float64{7}, false, Summary{1, 7, 7, 7, 7, 7, 7}},
		{"even", []float64{4, 1, 3, 2}, false, Summary{4, 1, 2.5, 2.5, 3.85, 3.97, 4}},
		{"many", hundred, false, Summary{101, 0, 50, 50, 95, 99, 100}},
		{"rates have their bad side below", hundred, true, Summary{101, 0, 50, 50, 5, 1, 100}},
	} {
		before := slices.Clone(c.samples)
		got := Summarize(c.samples, c.higher)
		for _, v := range [][2]float64{
			{float64(got.N), float64(c.want.N)}, {got.Min, c.want.Min}, {got.Mean, c.want.Mean}, {got.P50, c.want.P50},
			{got.P95, c.want.P95}, {got.P99, c.want.P99}, {got.Max, c.want.Max},
		} {
			if math.Abs(v[0]-v[1]) > 1e-9 {
				t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
				break
			}
		}
		if !slices.Equal(before, c.samples) {
			t.Errorf("%s: the samples were put into another order", c.name)
		}
	}
}

func TestRatio(t *testing.T) {
	for _, c := range []struct {
		value, base float64
		higher      bool
		want        float64
	}{
		{20, 10, false, 2}, {5, 10, false, 0.5}, {20, 10, true, 0.5}, {5, 10, true, 2}, {10, 10, true, 1},
		{0, 10, true, 0}, {10, 0, false, 0},
	} {
		if got := Ratio(c.value, c.base, c.higher); got != c.want {
			t.Errorf("Ratio(%g, %g, %t) = %g, want %g", c.value, c.base, c.higher, got, c.want)
		}
	}
}
