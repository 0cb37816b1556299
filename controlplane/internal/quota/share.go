package quota

import "math/bits"

// Million is a whole in parts per million.
const Million = 1_000_000

// Shares divides a rate limit between the live edges of a region. Each gets a
// floor of a tenth of an even share, so that a request that arrives where none
// did before is not refused; the rest goes by demand. demands are of the edges
// that have any; live counts all edges, those included. The shares and the floors
// of the edges without demand are at most a whole together.
func Shares(live int, demands []int64) []int64 {
	live = max(live, len(demands), 1)
	floor := int64(Million / 10 / live)
	rest := Million - floor*int64(live)
	var sum int64
	for _, d := range demands {
		sum += clamp(d)
	}
	out := make([]int64, len(demands))
	for i, d := range demands {
		if sum == 0 {
			out[i] = int64(Million / live)
			continue
		}
		hi, lo := bits.Mul64(uint64(rest), uint64(clamp(d)))
		part, _ := bits.Div64(hi, lo, uint64(sum))
		out[i] = floor + int64(part)
	}
	return out
}

// clamp keeps what an edge says of its demand within what may be summed exactly.
func clamp(demand int64) int64 { return min(max(0, demand), 1<<40) }
