package head

// The lengths in bits of the code's words (RFC 7541, appendix B). The code is canonical: words of one length are counted up in
// the order of their symbols, so that the lengths are all of it. The end-of-string symbol, 30 bits of ones, is left out: it
// must not occur, and its beginnings are the padding.
var huffmanLengths = [256]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
}

// step is what four bits do in a state of the decoder: states are the inner nodes of the code's tree.
type step struct {
	next  uint8
	emits bool // no word is shorter than five bits: four end one at most
	ends  bool // what came since the last word is a padding that may end the text here
	fails bool
	sym   byte
}

var steps [256][16]step

func init() {
	// The tree: 255 inner nodes above 256 words, and those above the end-of-string symbol.
	type node struct{ kids [2]int } // > 0: an inner node; < 0: the word of symbol -kid-1; 0: nothing
	tree := make([]node, 1, 300)
	put := func(word uint32, n uint8, sym int) {
		at := 0
		for i := int(n) - 1; i > 0; i-- {
			bit := word >> i & 1
			if tree[at].kids[bit] == 0 {
				tree = append(tree, node{})
				tree[at].kids[bit] = len(tree) - 1
			}
			at = tree[at].kids[bit]
		}
		tree[at].kids[word&1] = -sym - 1
	}
	word, last := uint32(0), uint8(0)
	for n := uint8(5); n <= 30; n++ {
		for sym, l := range huffmanLengths {
			if l == n {
				word <<= n - last
				last = n
				put(word, n, sym)
				word++
			}
		}
	}
	// Nodes at which a padding may end: those that up to seven ones lead to.
	padded := make([]bool, len(tree))
	padded[0] = true
	for i, at := 0, 0; i < 7; i++ {
		if at = tree[at].kids[1]; at <= 0 {
			break
		}
		padded[at] = true
	}
	if len(tree) > len(steps) {
		panic("head: the Huffman code has more states than there is room for")
	}
	for state := range tree {
		for bits := range 16 {
			s := &steps[state][bits]
			at := state
			for i := 3; i >= 0; i-- {
				kid := tree[at].kids[bits>>i&1]
				switch {
				case kid > 0:
					at = kid
				case kid < 0:
					s.emits, s.sym, at = true, byte(-kid-1), 0
				default: // the end-of-string symbol
					s.fails = true
				}
				if s.fails {
					break
				}
			}
			s.next, s.ends = uint8(at), padded[at]
		}
	}
}

// Unhuffman appends to dst what src says. false: it is no text of the code's, or longer than room.
func Unhuffman(dst, src []byte, room int) ([]byte, bool) {
	state, ends := uint8(0), true
	most := len(dst) + room
	for _, c := range src {
		a := &steps[state][c>>4]
		if a.fails {
			return dst, false
		}
		if a.emits {
			dst = append(dst, a.sym)
		}
		b := &steps[a.next][c&15]
		if b.fails {
			return dst, false
		}
		if b.emits {
			dst = append(dst, b.sym)
		}
		if len(dst) > most {
			return dst, false
		}
		state, ends = b.next, b.ends
	}
	return dst, ends
}
