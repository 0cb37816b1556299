package quota

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
		sum = Add(sum, max(0, d))
	}
	out := make([]int64, len(demands))
	for i, d := range demands {
		if sum == 0 {
			out[i] = int64(Million / live)
			continue
		}
		out[i] = floor + part(rest, max(0, d), sum)
	}
	return out
}

// part is whole*n/of for n ≤ of, without overflow: whole is at most Million.
func part(whole, n, of int64) int64 {
	for of > 1<<40 {
		n, of = n>>1, of>>1
	}
	return whole * min(n, of) / of
}
