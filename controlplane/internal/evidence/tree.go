package evidence

import (
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// tree holds the hashes of a log in the order in which tlog stores them: two a leaf, 64 bytes.
type tree struct {
	size   int64
	hashes []tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(t.hashes)) {
			return nil, fmt.Errorf("hash %d of a log that has %d", x, len(t.hashes))
		}
		out[i] = t.hashes[x]
	}
	return out, nil
}

func (t *tree) add(leaf []byte) error {
	more, err := tlog.StoredHashes(t.size, leaf, t)
	if err != nil {
		return err
	}
	t.hashes = append(t.hashes, more...)
	t.size++
	return nil
}

func (t *tree) root(size int64) (tlog.Hash, error) {
	if size > t.size {
		return tlog.Hash{}, fmt.Errorf("head of %d records of a log that has %d", size, t.size)
	}
	return tlog.TreeHash(size, t)
}

// frontier are the whole subtrees that the first size records make up, the largest first.
func (t *tree) frontier(size int64) ([]tlog.Hash, error) {
	var at []int64
	var done int64
	for rest := size; rest > 0; {
		level := bits.Len64(uint64(rest)) - 1
		at = append(at, tlog.StoredHashIndex(level, done>>level))
		done += 1 << level
		rest -= 1 << level
	}
	return t.ReadHashes(at)
}

// climber computes the head of a log while its records pass by, from any place on whose frontier is known.
type climber struct {
	size  int64
	stack []tlog.Hash // a subtree for each bit of size that is set, the largest first
}

func newClimber(size int64, frontier []tlog.Hash) (*climber, error) {
	if size < 0 || bits.OnesCount64(uint64(size)) != len(frontier) {
		return nil, fmt.Errorf("%d hashes do not make the frontier of %d records", len(frontier), size)
	}
	return &climber{size: size, stack: append([]tlog.Hash(nil), frontier...)}, nil
}

func (c *climber) add(leaf []byte) { c.addHash(tlog.RecordHash(leaf)) }

func (c *climber) addHash(h tlog.Hash) {
	for n := c.size; n&1 == 1; n >>= 1 {
		last := len(c.stack) - 1
		h, c.stack = tlog.NodeHash(c.stack[last], h), c.stack[:last]
	}
	c.stack = append(c.stack, h)
	c.size++
}

func (c *climber) root() tlog.Hash {
	if len(c.stack) == 0 {
		h, _ := tlog.TreeHash(0, nil) // of nothing
		return h
	}
	h := c.stack[len(c.stack)-1]
	for i := len(c.stack) - 2; i >= 0; i-- {
		h = tlog.NodeHash(c.stack[i], h)
	}
	return h
}
