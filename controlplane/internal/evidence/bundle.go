package evidence

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// A bundle is text, one entry a line: a heading, the records as the tree hashes them, the heads, and the zone's
// signature over all bytes before it. Nothing follows the signature.
const (
	Format     = "bailiwick-evidence/1"
	signedText = "bailiwick-bundle/1\n"
	maxHeads   = 1000 // in one bundle, evenly spread
	maxLine    = 2*MaxRecord + 1<<10
)

// heading is a bundle's first line.
type heading struct {
	Format   string    `json:"format"`
	Zone     string    `json:"zone"`
	Node     string    `json:"node"` // that wrote it
	From     time.Time `json:"from"` // asked for
	To       time.Time `json:"to"`
	Exported time.Time `json:"exported_at"`
	First    int64     `json:"first"` // number of the first record: a state, or 0
	Size     int64     `json:"size"`  // of the log at the last record
	Frontier []string  `json:"frontier"`
	Key      []byte    `json:"key"`   // the zone's, Ed25519
	Chain    string    `json:"chain"` // PEM: the key's certificate up to the installation's root
}

// ending is the line after the records.
type ending struct {
	Heads []string `json:"heads"` // signed notes, oldest first; the last is of the whole
}

// Export is one bundle on its way out. What it fixes makes the same bytes again on the same node, so that one that broke off
// can go on.
type Export struct {
	At    time.Time // of the export
	First int64
	Size  int64

	l        *Log
	heading  heading
	segments []segment
}

// NewExport finds what a bundle of what was decided from one instant to another has to hold. It begins earlier, at a state,
// so that everything in it can be derived, and ends with a head that the zone has signed and its nodes agree on. resume, if
// not nil, is what was fixed when it was begun.
func (l *Log) NewExport(node, chainPEM string, from, to time.Time, resume *Export) (*Export, error) {
	l.mu.Lock()
	broken, newest, segments := l.broken, l.newest, slices.Clone(l.segments)
	l.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	x := &Export{At: time.Now().UTC(), l: l, segments: segments}
	x.heading = heading{Format: Format, Zone: l.cfg.Zone, Node: node, From: from.UTC(), To: to.UTC(), Key: l.key, Chain: chainPEM}
	var err error
	if resume != nil {
		x.At, x.First, x.Size = resume.At.UTC(), resume.First, resume.Size
	} else if x.First, err = l.firstState(segments, from); err == nil {
		x.Size, err = l.headAfter(segments, to, x.First, newest)
	}
	if err != nil {
		return nil, err
	}
	if x.First < segments[0].first || x.Size <= x.First || x.Size > newest.Size {
		return nil, fault.New(fault.Unavailable, "NO_CHECKPOINT", "zone %s has signed no head of its log since %s: try again in some seconds", l.cfg.Zone, from.Format(time.RFC3339))
	}
	if x.First > 0 { // what was before has been dropped, or this node's copy begins later
		begins, err := l.timeAt(segments, x.First)
		if err != nil {
			return nil, err
		}
		if begins.After(x.heading.From) {
			x.heading.From = begins
		}
	}
	x.heading.Exported, x.heading.First, x.heading.Size = x.At, x.First, x.Size
	l.mu.Lock()
	frontier, err := l.tree.frontier(x.First)
	l.mu.Unlock()
	x.heading.Frontier = texts(frontier)
	return x, err
}

// firstState is the newest state, or beginning of what there is, before an instant.
func (l *Log) firstState(segments []segment, from time.Time) (int64, error) {
	i := 0
	for i+1 < len(segments) && segments[i+1].at.Before(from) {
		i++
	}
	first := segments[i].first
	err := l.scan(segments[i:i+1], first, func(tag byte, number int64, body []byte) error {
		if tag != tagLeaf || !bytes.HasPrefix(body, stateBegins) {
			return nil
		}
		at, err := timeOf(body)
		if err != nil || !at.Before(from) {
			return errors.Join(err, durable.ErrStop)
		}
		first = number
		return nil
	})
	return first, err
}

// timeAt is the time of a record.
func (l *Log) timeAt(segments []segment, number int64) (at time.Time, err error) {
	err = l.scan(segments, number, func(tag byte, n int64, body []byte) error {
		if tag != tagLeaf || n != number {
			return nil
		}
		var err error
		if at, err = timeOf(body); err != nil {
			return err
		}
		return durable.ErrStop
	})
	return at, err
}

// headAfter is the size of the oldest head that covers all records up to an instant, or of the newest head.
func (l *Log) headAfter(segments []segment, to time.Time, first int64, newest head) (int64, error) {
	i := 0
	for i+1 < len(segments) && !segments[i+1].at.After(to) {
		i++
	}
	size, last, over := newest.Size, segments[i].first, false
	err := l.scan(segments[i:], segments[i].first, func(tag byte, number int64, body []byte) error {
		switch {
		case tag == tagLeaf && !over:
			at, err := timeOf(body)
			if err != nil {
				return err
			}
			if over = at.After(to); !over {
				last = number + 1
			}
		case tag == tagHead:
			c, err := checkpoint.Open(l.cfg.Zone, l.key, body)
			if err != nil {
				return err
			}
			if over && c.Size >= last && c.Size > first {
				size = c.Size
				return durable.ErrStop
			}
		}
		return nil
	})
	return size, err
}

var stateBegins = []byte(`{"kind":"` + KindState + `",`)

// timeOf reads a leaf's time alone: it stands before all that might say "at" as well.
func timeOf(leaf []byte) (time.Time, error) {
	if _, rest, ok := bytes.Cut(leaf, []byte(`,"at":"`)); ok {
		if text, _, ok := bytes.Cut(rest, []byte(`"`)); ok {
			return time.Parse(time.RFC3339Nano, string(text))
		}
	}
	r, err := Decode(leaf)
	return r.At, err
}

// WriteTo writes the bundle from a byte on.
func (x *Export) WriteTo(w io.Writer, offset int64) error {
	out := &lineWriter{w: bufio.NewWriterSize(&skipper{w, offset}, 64<<10), sum: sha256.New()}
	out.json(x.heading)
	heads, done := spread{}, false
	err := x.l.scan(x.segments, x.First, func(tag byte, number int64, body []byte) error {
		switch {
		case tag == tagLeaf && number >= x.First && number < x.Size:
			out.line(body)
		case tag == tagHead:
			c, err := checkpoint.Open(x.l.cfg.Zone, x.l.key, body)
			if err != nil {
				return err
			}
			if c.Size < x.First || c.Size > x.Size {
				return nil
			}
			heads.add(string(body))
			if done = c.Size == x.Size && number >= x.Size; done {
				return durable.ErrStop
			}
		}
		return out.err
	})
	if err == nil && !done {
		err = fault.New(fault.Unavailable, "HEAD_MISSING", "this node's log has no head of %d records any more: export again", x.Size)
	}
	if err != nil {
		return err
	}
	out.json(ending{Heads: heads.list()})
	return out.sign(x.l.cfg.Signer)
}

// spread keeps heads, evenly, about maxHeads at most, and always the last.
type spread struct {
	kept []string
	last string
	step int // of those that came, every step-th is kept
	n    int
}

func (s *spread) add(note string) {
	s.step = max(s.step, 1)
	if s.last = note; s.n%s.step == 0 {
		s.kept = append(s.kept, note)
	}
	s.n++
	if len(s.kept) >= maxHeads {
		for i := range len(s.kept) / 2 {
			s.kept[i] = s.kept[2*i]
		}
		s.kept, s.step = s.kept[:len(s.kept)/2], 2*s.step
	}
}

func (s *spread) list() []string {
	if len(s.kept) == 0 || s.kept[len(s.kept)-1] == s.last {
		return s.kept
	}
	return append(s.kept, s.last)
}

// skipper leaves out what its reader has already.
type skipper struct {
	w    io.Writer
	left int64
}

func (s *skipper) Write(p []byte) (int, error) {
	n := min(s.left, int64(len(p)))
	s.left -= n
	if n == int64(len(p)) {
		return len(p), nil
	}
	m, err := s.w.Write(p[n:])
	return int(n) + m, err
}

// lineWriter remembers the first error and hashes what it writes.
type lineWriter struct {
	w   *bufio.Writer
	sum hash.Hash
	err error
}

func (o *lineWriter) line(b []byte) {
	b = append(b, '\n')
	o.sum.Write(b)
	if o.err == nil {
		_, o.err = o.w.Write(b)
	}
}

func (o *lineWriter) json(v any) {
	b, err := json.Marshal(v)
	if err != nil && o.err == nil {
		o.err = err
	}
	o.line(b)
}

func (o *lineWriter) sign(key ed25519.PrivateKey) error {
	sig := ed25519.Sign(key, o.sum.Sum([]byte(signedText)))
	if o.err == nil {
		_, o.err = fmt.Fprintf(o.w, "%s%s\n", signaturePrefix, base64.StdEncoding.EncodeToString(sig))
	}
	if o.err == nil {
		o.err = o.w.Flush()
	}
	return o.err
}

const signaturePrefix = "signature "
