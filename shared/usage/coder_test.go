package usage

import "testing"

// Dividing by multiplying is dividing, for every estimate there can be: a payload's bytes depend on it.
func TestProb_LearnsExactly(t *testing.T) {
	for n := range probSpeed + 1 {
		for off := -probEdge; off <= probEdge; off++ {
			for bit := range 2 {
				p := prob{int16(off), uint8(n)}
				p.learn(bit)
				to := int32(probEdge)
				if bit != 0 {
					to = -probEdge
				}
				if want := int16(off) + int16((to-int32(off))*2/int32(2*n+3)); p.off != want {
					t.Fatalf("n %d, off %d, bit %d: %d, want %d", n, off, bit, p.off, want)
				}
			}
		}
	}
}
