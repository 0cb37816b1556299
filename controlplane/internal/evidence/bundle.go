package evidence

import (
	"bufio"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"sort"
	"time"

	"golang.org/x/mod/sumdb/tlog"

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

// Export writes a bundle of what was decided from one instant to another. It begins earlier, at a state, so that
// everything in it can be derived, and ends with a head that the zone has signed and its nodes agree on.
func (l *Log) Export(w io.Writer, node, chainPEM string, from, to time.Time) error {
	l.mu.Lock()
	broken := l.broken
	heads := l.heads[:len(l.heads):len(l.heads)]
	h := heading{Format: Format, Zone: l.cfg.Zone, Node: node, From: from.UTC(), To: to.UTC(), Exported: time.Now().UTC(), Key: l.key, Chain: chainPEM}
	// The first record of the range, and the newest state before it.
	asked := int64(sort.Search(len(l.times), func(i int) bool { return l.times[i] >= from.UnixMilli() }))
	for _, s := range l.states {
		if s <= asked {
			h.First = s
		}
	}
	until := int64(sort.Search(len(l.times), func(i int) bool { return l.times[i] > to.UnixMilli() }))
	end := sort.Search(len(heads), func(i int) bool { return heads[i].Size >= max(until, h.First) })
	if end == len(heads) {
		end-- // what came after the newest head is not signed yet
	}
	var frontier []tlog.Hash
	var err error
	var offsets []int64
	if broken == nil && end >= 0 && heads[end].Size > h.First {
		h.Size = heads[end].Size
		frontier, err = l.tree.frontier(h.First)
		offsets = l.offsets[h.First:h.Size:h.Size]
	}
	l.mu.Unlock()
	switch {
	case broken != nil:
		return broken
	case err != nil:
		return err
	case h.Size == 0:
		return fault.New(fault.Unavailable, "NO_CHECKPOINT", "zone %s has signed no head of its log since %s: try again in some seconds", l.cfg.Zone, from.Format(time.RFC3339))
	}
	h.Frontier = []string{}
	for _, x := range frontier {
		h.Frontier = append(h.Frontier, x.String())
	}
	out := &lineWriter{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	out.json(h)
	for _, off := range offsets {
		leaf, err := l.file.Record(off)
		if err != nil {
			return err
		}
		out.line(leaf[1:])
	}
	out.json(ending{Heads: spread(heads[:end+1], h.First)})
	return out.sign(l.cfg.Signer)
}

// spread takes the last head and up to maxHeads others between it and the first record.
func spread(all []head, first int64) []string {
	begin := sort.Search(len(all), func(i int) bool { return all[i].Size >= first })
	all = all[begin:]
	step := (len(all) + maxHeads - 1) / maxHeads
	out := []string{}
	for i := (len(all) - 1) % step; i < len(all); i += step {
		out = append(out, string(all[i].note))
	}
	return out
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
