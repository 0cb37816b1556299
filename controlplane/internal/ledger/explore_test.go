package ledger_test

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// The small worlds. Each is explored to its end: not a sample of what may happen but all of it. Two edges and
// three nodes are in most; what else may happen differs, since everything at once would be too much.
var (
	oneBlock   = bounds{name: "one block an edge", rows: 1, epochs: 1, tail: 1, pending: 1, net: 2, down: 1}
	restarts   = bounds{name: "restarts", rows: 1, epochs: 2, tail: 1, pending: 1, net: 1, down: 1}
	twoBlocks  = bounds{name: "two blocks an edge", rows: 2, epochs: 1, tail: 1, pending: 1, net: 1}
	copied     = bounds{name: "a copied disk", rows: 1, epochs: 2, tail: 1, pending: 1, net: 1, clone: true}
	operator   = bounds{name: "a lost disk and an operator", rows: 1, epochs: 2, tail: 1, pending: 1, net: 2, closes: true, gone: true, alone: true}
	told       = bounds{name: "sealed-through", rows: 2, epochs: 2, tail: 1, pending: 1, net: 1, beats: true, alone: true}
	smokeWorld = []bounds{oneBlock, restarts, twoBlocks, copied, operator, told}

	restartsTwo = bounds{name: "restarts with two rows", rows: 2, epochs: 2, tail: 1, pending: 1, net: 1}
	copiedTwo   = bounds{name: "a copied disk with two rows", rows: 2, epochs: 2, tail: 1, pending: 1, net: 1, clone: true}
	largerWorld = []bounds{
		restartsTwo, copiedTwo,
		{name: "more under way", rows: 1, epochs: 2, tail: 2, pending: 2, net: 2, down: 1},
		{name: "two nodes down", rows: 1, epochs: 1, tail: 2, pending: 2, net: 3, down: 2},
		{name: "lost disks and an operator", rows: 1, epochs: 2, tail: 1, pending: 1, net: 1, down: 1, closes: true, gone: true},
		{name: "sealed-through of two edges", rows: 1, epochs: 2, tail: 1, pending: 1, net: 1, beats: true},
		{name: "sealed-through of two blocks", rows: 2, epochs: 1, tail: 1, pending: 1, net: 1, beats: true},
	}
)

// EXPLORE=full walks the larger worlds: make explore.
func TestExplore(t *testing.T) {
	worlds := smokeWorld
	if os.Getenv("EXPLORE") == "full" {
		worlds = largerWorld
	}
	for _, b := range worlds {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			r, err := explored(b, production())
			if err != nil {
				t.Errorf("%v: %v", r, err)
			}
			fmt.Printf("explored %-30s %v, %s\n", b.name+":", r, time.Since(begun).Round(100*time.Millisecond))
		})
	}
}
