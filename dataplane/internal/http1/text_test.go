package http1

import "testing"

// A byte that no value may hold is found wherever it stands, and no other is taken for one.
func TestTextOf_FindsWhatIsNone(t *testing.T) {
	for n := range 40 {
		for at := range n + 1 {
			for c := range 256 {
				b := make([]byte, n)
				for i := range b {
					b[i] = "a~ \x80\xff\t!Z"[(i+c)%8]
				}
				want := n
				if at < n {
					if b[at] = byte(c); !text[c] {
						want = at
					}
				}
				if got := textOf(string(b)); got != want {
					t.Fatalf("%q: got %d, want %d", b, got, want)
				}
			}
		}
	}
}
