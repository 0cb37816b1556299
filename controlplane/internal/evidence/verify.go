package evidence

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/fault"
)

// maxFindings bounds what is listed; all are counted.
const maxFindings = 100

// Trust is what an auditor knows without the bundle. At least one of Key and Roots must be given, or a bundle is only
// consistent with itself.
type Trust struct {
	Zone  string            // expected; "": whichever it is
	Key   ed25519.PublicKey // the zone's
	Roots *x509.CertPool    // the installation's
	// Held are heads that others kept, edges or earlier bundles: the bundle's log must be the one they saw.
	Held [][]byte
	// Rows are files of rows that edges keep: the log must have exactly their digests.
	Rows []*Rows
}

// Finding is one thing that is wrong.
type Finding struct {
	Line   int64  `json:"line"`             // of the bundle, from 1
	Record int64  `json:"record,omitempty"` // number in the zone's log
	What   string `json:"what"`
}

// Verdict is what verification found.
type Verdict struct {
	Zone     string           `json:"zone"`
	From     time.Time        `json:"from"`
	To       time.Time        `json:"to"`
	Exported time.Time        `json:"exported_at"`
	Node     string           `json:"node"`
	First    int64            `json:"first"`
	Size     int64            `json:"size"`
	Root     string           `json:"root"`
	Records  map[string]int64 `json:"records"` // by kind
	Heads    int              `json:"heads"`
	Held     int              `json:"held"` // heads of others that agree
	Rows     []RowsVerdict    `json:"rows,omitempty"`
	Anchor   string           `json:"anchor"`
	Total    int64            `json:"total"` // of findings
	Findings []Finding        `json:"findings"`
}

func (v *Verdict) find(line, record int64, format string, args ...any) {
	if v.Total++; len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, Finding{line, record, fmt.Sprintf(format, args...)})
	}
}

// malformed is the error for what is no bundle, or one that was cut.
func malformed(line int64, format string, args ...any) error {
	return fault.New(fault.Invalid, "BUNDLE_MALFORMED", "line %d of the bundle: %w; get the file again from who exported it", line, fmt.Errorf(format, args...))
}

// Verify reads a bundle and judges it with nothing but trust: no network, no clock, no part of an installation. An
// error means that it could not be read to its end; what is wrong with a bundle that could is in the verdict.
func Verify(r io.Reader, trust Trust) (*Verdict, error) {
	return verify(r, trust, func(heading) {}, func(int64, entry) {})
}

func verify(r io.Reader, trust Trust, begun func(heading), each func(number int64, r entry)) (*Verdict, error) {
	in := &lines{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	v := &Verdict{Records: map[string]int64{}, Findings: []Finding{}}
	first, err := in.next()
	if err != nil {
		return nil, err
	}
	h, climb, err := begin(first)
	if err != nil {
		return nil, malformed(1, "%w", err)
	}
	v.Zone, v.From, v.To, v.Exported, v.Node, v.First, v.Size = h.Zone, h.From, h.To, h.Exported, h.Node, h.First, h.Size
	v.anchor(h, trust)
	begun(h)
	world := newReplay(h.Zone, h.Key)
	roots := map[int64]tlog.Hash{} // at the sizes of heads that others kept
	wanted := map[int64]bool{}
	for _, note := range trust.Held {
		if c, err := checkpoint.Open(h.Zone, h.Key, note); err != nil {
			v.find(0, 0, "a head that was kept elsewhere is not of this zone's key: %v", err)
		} else {
			wanted[c.Size] = true
		}
	}
	if wanted[h.First] {
		roots[h.First] = climb.root()
	}
	trail := newTrail(climb)
	rows := v.holdRows(h, trust.Rows)
	err = in.records(h.Size-h.First, func(line int64, e *read) error {
		number := climb.size
		if e.bad != nil {
			return malformed(line, "record %d: %w", number, e.bad)
		}
		if number == h.First && (e.Kind == KindState) != (number > 0) {
			v.find(line, number, "a bundle begins with the log's first record, or with a state, not with %s", e.Kind)
		}
		if number == h.First && number > 0 && e.At.After(h.From) {
			v.find(line, number, "the bundle says that it tells what was decided from %s on, and begins at %s: what lies between is missing", h.From.Format(time.RFC3339), e.At.Format(time.RFC3339Nano))
		}
		for _, p := range world.apply(e.entry) {
			v.find(line, number, "%s", p)
		}
		v.Records[e.Kind]++
		climb.addHash(e.leaf)
		trail.hashes = append(trail.hashes, e.leaf)
		if wanted[climb.size] {
			roots[climb.size] = climb.root()
		}
		for _, c := range rows {
			c.take(line, number, e.entry)
		}
		each(number, e.entry)
		return nil
	})
	if err != nil {
		return nil, err
	}
	last, err := in.next()
	if err != nil {
		return nil, err
	}
	end, err := decodeEnding(last)
	if err != nil {
		return nil, malformed(in.line, "after %d records the heads of the log were expected: %w", h.Size-h.First, err)
	}
	for _, p := range world.finish() {
		v.find(in.line, h.Size-1, "%s", p)
	}
	for _, c := range rows {
		c.finish()
	}
	root := climb.root()
	v.Root = root.String()
	v.heads(h, end, trail, in.line)
	for _, note := range trust.Held {
		v.held(h, note, roots, root)
	}
	if err := v.signature(in, h); err != nil {
		return nil, err
	}
	return v, nil
}

// trail keeps the leaf hashes of the bundle, from which the root at any size within it follows.
type trail struct {
	from   *climber
	hashes []tlog.Hash
}

func newTrail(c *climber) *trail {
	return &trail{from: &climber{c.size, append([]tlog.Hash(nil), c.stack...)}}
}

// heads checks that each head is signed and is that of exactly the records here, in order of size. One pass.
func (v *Verdict) heads(h heading, end ending, t *trail, line int64) {
	last := int64(-1)
	for i, text := range end.Heads {
		c, err := checkpoint.Open(h.Zone, h.Key, []byte(text))
		if err != nil {
			v.find(line, 0, "head %d: %v", i+1, err)
			continue
		}
		v.Heads++
		if c.Size < h.First || c.Size > h.Size || c.Size < last {
			v.find(line, 0, "head %d is of %d records: it is out of order or not of this bundle's %d to %d", i+1, c.Size, h.First, h.Size)
			continue
		}
		last = c.Size
		for t.from.size < c.Size {
			t.from.addHash(t.hashes[t.from.size-h.First])
		}
		if got := t.from.root(); got != c.Root {
			v.find(line, c.Size-1, "the zone signed %s for its first %d records at %s, these come to %s: a record up to number %d was changed, left out, added or moved; ask for the bundle of another node of the zone and compare",
				c.Root, c.Size, c.At.Format(time.RFC3339), got, c.Size-1)
		}
	}
	if last != h.Size {
		v.find(line, h.Size-1, "no signed head covers the last records: the newest is of %d, the bundle ends at %d", last, h.Size)
	}
}

func (v *Verdict) held(h heading, note []byte, roots map[int64]tlog.Hash, root tlog.Hash) {
	c, err := checkpoint.Open(h.Zone, h.Key, note)
	if err != nil {
		return // said already
	}
	got, ok := roots[c.Size]
	switch {
	case !ok && c.Size == h.Size:
		got, ok = root, true
	case !ok && c.Size > h.Size:
		v.find(0, 0, "a head that was kept elsewhere is of %d records, the bundle ends at %d: export one that goes at least to %s", c.Size, h.Size, c.At.Format(time.RFC3339))
		return
	case !ok:
		v.find(0, 0, "a head that was kept elsewhere is of %d records, the bundle begins at %d: export one that begins before %s", c.Size, h.First, c.At.Format(time.RFC3339))
		return
	}
	if got != c.Root {
		v.find(0, c.Size-1, "split view: another party holds a head of %d records with root %s, signed by the zone at %s; this bundle's first %d records come to %s. The zone has shown two histories", c.Size, c.Root, c.At.Format(time.RFC3339), c.Size, got)
		return
	}
	v.Held++
}

func begin(line []byte) (h heading, c *climber, err error) {
	if err := strictJSON(line, &h); err != nil {
		return h, nil, err
	}
	if h.Format != Format {
		return h, nil, fmt.Errorf("its format is %.40q, this program reads %s", h.Format, Format)
	}
	if h.Zone == "" || len(h.Key) != ed25519.PublicKeySize || h.First < 0 || h.Size <= h.First || h.Size > 1<<40 {
		return h, nil, errors.New("it names no zone, no key or no records")
	}
	frontier, err := parseHashes(h.Frontier)
	if err != nil {
		return h, nil, err
	}
	c, err = newClimber(h.First, frontier)
	return h, c, err
}

func parseHashes(texts []string) (out []tlog.Hash, err error) {
	for _, text := range texts {
		h, err := tlog.ParseHash(text)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

func decodeEnding(line []byte) (e ending, err error) { return e, strictJSON(line, &e) }

func strictJSON(line []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.InputOffset() != int64(len(line)) {
		return errors.New("text follows the entry")
	}
	return nil
}

// anchor says why the key in the bundle is the zone's.
func (v *Verdict) anchor(h heading, trust Trust) {
	if trust.Zone != "" && trust.Zone != h.Zone {
		v.find(1, 0, "the bundle is of zone %s, not of %s", h.Zone, trust.Zone)
	}
	if len(trust.Key) > 0 {
		if !trust.Key.Equal(ed25519.PublicKey(h.Key)) {
			v.find(1, 0, "the bundle is signed with another key than the one given for the zone")
			return
		}
		v.Anchor = "key"
	}
	if trust.Roots == nil {
		return
	}
	if err := chained(h, trust.Roots); err != nil {
		v.find(1, 0, "the zone's key does not lead to the given root: %v", err)
		return
	}
	v.Anchor = "root"
}

// chained checks the certificate of the zone's key: issued under the roots, for the zone's own name.
func chained(h heading, roots *x509.CertPool) error {
	var certs []*x509.Certificate
	for rest := []byte(h.Chain); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return errors.New("the bundle holds no certificate")
	}
	if key, ok := certs[0].PublicKey.(ed25519.PublicKey); !ok || !key.Equal(ed25519.PublicKey(h.Key)) {
		return errors.New("the certificate is of another key")
	}
	if len(certs[0].URIs) != 1 || !signerOf(certs[0].URIs[0], h.Zone) {
		return fmt.Errorf("the certificate is not for the signer of zone %s", h.Zone)
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: h.Exported, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func signerOf(u *url.URL, zone string) bool {
	return u.Scheme == "spiffe" && u.Path == "/signer" && strings.HasPrefix(u.Host, zone+".")
}

// signature checks the last line and that nothing follows.
func (v *Verdict) signature(in *lines, h heading) error {
	sum := in.sum.Sum([]byte(signedText))
	line, err := in.next()
	if err != nil {
		return err
	}
	text, ok := strings.CutPrefix(string(line), signaturePrefix)
	sig, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(sig) != ed25519.SignatureSize {
		return malformed(in.line, "the signature was expected")
	}
	if _, err := in.r.ReadByte(); err != io.EOF {
		return malformed(in.line+1, "text follows the signature")
	}
	if !ed25519.Verify(h.Key, sum, sig) {
		v.find(in.line, 0, "the bundle's signature does not fit: some byte of lines 1 to %d was changed after the zone signed it; get the file again from who exported it", in.line-1)
	}
	return nil
}
