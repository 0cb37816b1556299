// Package canary finds planted secrets in bytes that somebody else wrote: raw, in the encodings that programs use, in
// compressed streams, and as hashes. It owns the list of encodings (encodings.go) and of streams (streams.go).
//
// A canary must be random: a compressor then has to store its letters as they are, or in a stream that is opened
// here. What it cannot find, and nobody could: keyed hashes and ciphertext. It keeps nothing; a Scanner never
// changes, so any number of goroutines may use one at once.
package canary

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
)

// Limits of what a scan opens.
const (
	MinLength = 12       // bytes of a canary; shorter ones are found by chance
	MaxFile   = 1 << 30  // a larger file is an error, never skipped
	MaxStream = 16 << 20 // of a decompressed stream; the rest is not looked at
	MaxDepth  = 3        // streams within streams
)

// Canary is a secret that was planted somewhere.
type Canary struct {
	Name  string
	Value []byte
}

// Finding is a canary where it should not be.
type Finding struct {
	Canary   string
	Encoding string // with the streams around it: gzip/hex
	Where    string
	Offset   int64
}

func (f Finding) String() string {
	return fmt.Sprintf("%s as %s in %s at %d", f.Canary, f.Encoding, f.Where, f.Offset)
}

type needle struct {
	canary, encoding string
	text             []byte
}

// Scanner looks for a set of canaries.
type Scanner struct {
	filter  [1 << 14]uint64 // a bit for the hash of each needle's head
	needles map[uint64][]needle
}

// head is how many of a needle's first bytes are looked up.
const head = 8

// New makes a Scanner.
func New(canaries ...Canary) (*Scanner, error) {
	s := &Scanner{needles: map[uint64][]needle{}}
	for _, c := range canaries {
		if len(c.Value) < MinLength {
			return nil, fmt.Errorf("canary %s has %d bytes; with fewer than %d it would be found by chance", c.Name, len(c.Value), MinLength)
		}
		seen := map[string]bool{}
		for _, e := range encodings(c.Value) {
			if len(e.text) < head || seen[string(e.text)] {
				continue
			}
			seen[string(e.text)] = true
			first := binary.LittleEndian.Uint64(e.text)
			s.filter[bit(first)/64] |= 1 << (bit(first) % 64)
			s.needles[first] = append(s.needles[first], needle{c.Name, e.name, e.text})
		}
	}
	return s, nil
}

func bit(v uint64) uint64 { return v * 0x9e3779b97f4a7c15 >> 44 }

// Bytes looks into data, which is named where. Each canary and encoding is told once.
func (s *Scanner) Bytes(where string, data []byte) []Finding {
	found := map[[2]string]Finding{}
	s.scan(where, "", data, 0, found)
	list := make([]Finding, 0, len(found))
	for _, f := range found {
		list = append(list, f)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].String() < list[j].String() })
	return list
}

func (s *Scanner) scan(where, around string, data []byte, depth int, found map[[2]string]Finding) {
	for i := 0; i+head <= len(data); i++ {
		v := binary.LittleEndian.Uint64(data[i:])
		if b := bit(v); s.filter[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		for _, n := range s.needles[v] {
			if len(data)-i < len(n.text) || string(data[i:i+len(n.text)]) != string(n.text) {
				continue
			}
			key := [2]string{n.canary, around + n.encoding}
			if _, told := found[key]; !told {
				found[key] = Finding{n.canary, around + n.encoding, where, int64(i)}
			}
		}
	}
	if depth < MaxDepth {
		streams(data, func(kind string, inside []byte) { s.scan(where, around+kind+"/", inside, depth+1, found) })
	}
}

// Scanned is how much was looked at.
type Scanned struct {
	Files int
	Bytes int64
}

// Tree looks into every file below dir, and at its name. Files that go away meanwhile are skipped: stop what writes
// first.
func (s *Scanner) Tree(dir string) (found []Finding, total Scanned, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		found = append(found, s.Bytes(path+" (its name)", []byte(name))...)
		if !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info.Size() > MaxFile {
			return fmt.Errorf("look for canaries in %s: it has %d bytes, more than %d", path, info.Size(), MaxFile)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		total.Files++
		total.Bytes += int64(len(data))
		found = append(found, s.Bytes(path, data)...)
		return nil
	})
	return found, total, err
}
