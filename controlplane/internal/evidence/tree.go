package evidence

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/shared/durable"
)

// tree holds the hashes of a log in the order in which tlog stores them, two a leaf: those of the newest segment in memory,
// all before it in a file, hash by hash, 32 bytes each. A hash of zeros in the file is one that this node does not know,
// since its copy began later; then proofs from before are refused and no head is.
type tree struct {
	size   int64
	base   int64        // hashes that are in the file
	file   durable.File // nil: all are in memory
	recent []tlog.Hash
}

const treeName = "evidence.tree"

func openTree(fs durable.FS, dir string) (*tree, error) {
	f, err := fs.OpenFile(filepath.Join(dir, treeName), os.O_RDWR|os.O_CREATE, durable.FilePerm)
	if err != nil {
		return nil, fmt.Errorf("open the hashes of the evidence log: %w", err)
	}
	return &tree{file: f}, nil
}

// ReadHashes implements tlog.HashReader.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		switch {
		case x < 0 || x >= t.base+int64(len(t.recent)):
			return nil, fmt.Errorf("hash %d of a log that has %d", x, t.base+int64(len(t.recent)))
		case x >= t.base:
			out[i] = t.recent[x-t.base]
		default:
			if _, err := t.file.ReadAt(out[i][:], x*tlog.HashSize); err != nil {
				return nil, fmt.Errorf("read hash %d of the evidence log: %w", x, err)
			}
			if out[i] == (tlog.Hash{}) {
				return nil, fmt.Errorf("hash %d of the evidence log is from before this node's copy", x)
			}
		}
	}
	return out, nil
}

func (t *tree) add(leaf []byte) error {
	more, err := tlog.StoredHashes(t.size, leaf, t)
	if err != nil {
		return err
	}
	t.recent = append(t.recent, more...)
	t.size++
	return nil
}

// flush puts all hashes into the file, safe from a crash.
func (t *tree) flush() error {
	if err := t.put(t.base, t.recent); err != nil {
		return err
	}
	t.base += int64(len(t.recent))
	t.recent = nil
	return t.file.Sync()
}

func (t *tree) put(at int64, hashes []tlog.Hash) error {
	buf := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		buf = append(buf, h[:]...)
	}
	_, err := t.file.WriteAt(buf, at*tlog.HashSize)
	return err
}

// at stands the tree at a size whose hashes are in the file; false if they are not, or come to another frontier.
func (t *tree) at(size int64, frontier []tlog.Hash) bool {
	*t = tree{size: size, base: tlog.StoredHashCount(size), file: t.file}
	info, err := t.file.Stat()
	if err != nil || info.Size() < t.base*tlog.HashSize {
		return false
	}
	own, err := t.frontier(size)
	return err == nil && slices.Equal(own, frontier)
}

// restart stands the tree at a size of which it knows the frontier alone.
func (t *tree) restart(size int64, frontier []tlog.Hash) error {
	if bits.OnesCount64(uint64(size)) != len(frontier) {
		return fmt.Errorf("%d hashes do not make the frontier of %d records", len(frontier), size)
	}
	*t = tree{size: size, base: tlog.StoredHashCount(size), file: t.file}
	if err := t.file.Truncate(0); err != nil {
		return err
	}
	for i, x := range frontierOf(size) {
		if err := t.put(x, frontier[i:i+1]); err != nil {
			return err
		}
	}
	return t.file.Sync()
}

func (t *tree) root(size int64) (tlog.Hash, error) {
	if size > t.size {
		return tlog.Hash{}, fmt.Errorf("head of %d records of a log that has %d", size, t.size)
	}
	return tlog.TreeHash(size, t)
}

// frontier are the whole subtrees that the first size records make up, the largest first.
func (t *tree) frontier(size int64) ([]tlog.Hash, error) { return t.ReadHashes(frontierOf(size)) }

func frontierOf(size int64) (at []int64) {
	var done int64
	for rest := size; rest > 0; {
		level := bits.Len64(uint64(rest)) - 1
		at = append(at, tlog.StoredHashIndex(level, done>>level))
		done += 1 << level
		rest -= 1 << level
	}
	return at
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
