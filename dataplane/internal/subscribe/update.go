package subscribe

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Reasons of a Nack, beside those of package policy.
const (
	ReasonSignature = "SIGNATURE_INVALID"
	ReasonMalformed = "UPDATE_MALFORMED"
	ReasonWrongEdge = "WRONG_EDGE"
	ReasonStale     = "STALE_TABLE"
	ReasonPosition  = "POSITION_MISMATCH"
	ReasonLost      = "UPDATE_LOST" // a heartbeat names another position than is held
	ReasonTooLarge  = "TABLE_TOO_LARGE"
	ReasonPersist   = "PERSIST"
)

// part is one message of an update: its head, and a payload that holds the objects still.
type part struct {
	*syncv1.TableUpdate // without upserts
	signed              *syncv1.Signed
	replayed            bool              // it is on the disk already
	expect              int               // objects of all parts, about; 0: not known
	count               int               // of upserts
	objects             []policy.Prepared // of upserts, once prepared
}

// upsertsField is the number of TableUpdate.upserts.
const upsertsField = 10

// open verifies a signed message and that it is for this edge. What is signed by its hash names no edge: the signature does,
// and edges that hold the same are sent the same.
func (c *Client) open(signed *syncv1.Signed) (*part, error) {
	edge := c.cfg.Edge
	var covered []byte
	if signed.GetHashed() {
		covered, edge = table.SignedBytes(c.cfg.Edge, sha256.Sum256(signed.GetPayload())), ""
	} else {
		covered = table.SignedWhole(c.cfg.Edge, signed.GetPayload())
	}
	if !ed25519.Verify(c.cfg.SigningKey, covered, signed.GetSignature()) {
		return nil, fault.New(fault.Denied, ReasonSignature, "signature of an update is not that of zone %s for edge %s", c.cfg.Zone, c.cfg.Edge)
	}
	u, count, err := readHead(signed.Payload)
	if err != nil {
		return nil, err
	}
	if u.Edge != edge || u.Region != c.cfg.Region || u.Zone != c.cfg.Zone {
		return nil, fault.New(fault.Denied, ReasonWrongEdge, "update is for edge %q in region %q of zone %q", u.Edge, u.Region, u.Zone)
	}
	return &part{TableUpdate: u, signed: signed, count: count}, nil
}

// readHead reads all of a payload but its objects, and counts those. There may be a million of those in an update, and the generated reader
// would allocate three times for each.
func readHead(payload []byte) (u *syncv1.TableUpdate, count int, err error) {
	var rest []byte
	for b := payload; len(b) > 0; {
		num, _, n := protowire.ConsumeField(b)
		if n < 0 {
			return nil, 0, fault.New(fault.Invalid, ReasonMalformed, "read update: %w", protowire.ParseError(n))
		}
		if num != upsertsField {
			rest = append(rest, b[:n]...)
		} else {
			count++
		}
		b = b[n:]
	}
	u = new(syncv1.TableUpdate)
	if err := proto.Unmarshal(rest, u); err != nil {
		return nil, 0, fault.New(fault.Invalid, ReasonMalformed, "read update: %w", err)
	}
	return u, count, nil
}

// prepare reads the objects, in order, into room that nobody uses any more.
func (p *part) prepare(room []policy.Prepared) error {
	p.objects = slices.Grow(room[:0], p.count)
	return p.upserts(func(o table.Object) { p.objects = append(p.objects, policy.Prepare(o)) })
}

// upserts gives each object, in order. Its data is a piece of the payload.
func (p *part) upserts(each func(table.Object)) error {
	ids := make([]byte, 0, p.count*idRoom)
	for b := p.signed.Payload; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		if num != upsertsField || typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return malformed(n)
			}
			b = b[n:]
			continue
		}
		raw, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		o, kind, err := readObject(raw, &ids)
		if err != nil {
			return err
		}
		if kind == 0 || kind > 255 {
			return fault.New(fault.Invalid, ReasonMalformed, "object %q has kind %d", o.ID, kind)
		}
		o.Kind = table.Kind(kind)
		each(o)
	}
	return nil
}

// idRoom is what an id takes, mostly.
const idRoom = 16

// readObject reads an object. Its id is put into ids, which those of one part share: a million strings of their own would be
// a million things for the garbage collector to look at.
func readObject(b []byte, ids *[]byte) (o table.Object, kind uint64, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return o, 0, malformed(n)
		}
		b = b[n:]
		switch {
		case num == 1 && typ == protowire.VarintType:
			kind, n = protowire.ConsumeVarint(b)
		case num == 2 && typ == protowire.BytesType:
			var id []byte
			if id, n = protowire.ConsumeBytes(b); !utf8.Valid(id) {
				return o, 0, fault.New(fault.Invalid, ReasonMalformed, "an object's id is no text")
			}
			if len(*ids)+len(id) > cap(*ids) {
				*ids = make([]byte, 0, max(len(id), cap(*ids)))
			}
			at := len(*ids)
			*ids = append(*ids, id...) // in place: nothing writes there again
			o.ID = unsafe.String(unsafe.SliceData((*ids)[at:]), len(id))
		case num == 3 && typ == protowire.BytesType:
			o.Data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return o, 0, malformed(n)
		}
		b = b[n:]
	}
	return o, kind, nil
}

func malformed(n int) error {
	return fault.New(fault.Invalid, ReasonMalformed, "read objects of an update: %w", protowire.ParseError(n))
}

// staged collects the parts of one update. Objects go into the next table as they come, so that the last part finds
// nearly all of the work done.
type staged struct {
	snapshot bool
	from, to [2]revision.Revision // catalog, zone
	edit     *policy.Edit
	parts    []*syncv1.Signed // as received
	bytes    int64
	objects  uint64 // so far
	last     table.ObjectKey
	removes  bool
}

// add takes one part onto what is held; whole says that it was the last.
func (s *staged) add(u *part, held *policy.Table, limit int64) (next *staged, whole bool, err error) {
	n, err := headOf(u.TableUpdate)
	if err != nil {
		return nil, false, err
	}
	switch {
	case s.continued(n) && (u.Skipped == 0 || u.Skipped == s.objects):
		s.to = n.to
		n = s
	case s != nil && !n.snapshot:
		// Only a snapshot may break off what is staged: it does not rest on it.
		return nil, false, fault.New(fault.Conflict, ReasonPosition, "update %s begins while another is not whole", n.to[1])
	case u.Skipped > 0:
		return nil, false, fault.New(fault.Conflict, ReasonPosition, "a snapshot goes on behind %d objects that are not here", u.Skipped)
	case n.snapshot:
		n.edit = (*policy.Table)(nil).Edit()
		keys, _ := held.Size() // about as many as there were
		n.edit.Expect(max(keys, u.expect))
	default:
		n.edit = held.Edit()
	}
	if n.bytes += int64(len(u.signed.Payload)); n.bytes > limit {
		return nil, false, fault.New(fault.TooLarge, ReasonTooLarge, "update is larger than %d bytes", limit)
	}
	if u.objects == nil {
		if err := u.prepare(nil); err != nil {
			return nil, false, err
		}
	}
	for _, o := range u.objects {
		n.edit.Put(o)
	}
	if k := len(u.objects); k > 0 {
		n.objects, n.last = n.objects+uint64(k), u.objects[k-1].Object()
	}
	for _, k := range u.Removals {
		if k.GetKind() == 0 || k.GetKind() > 255 {
			return nil, false, fault.New(fault.Invalid, ReasonMalformed, "removal %q has kind %d", k.GetId(), k.GetKind())
		}
		n.removes = true
		n.edit.Remove(table.ObjectKey{Kind: table.Kind(k.Kind), ID: k.Id})
	}
	if !u.replayed {
		n.parts = append(n.parts, u.signed)
	}
	return n, !u.More, nil
}

// continued says whether a part with head n goes on with what is staged. Of a snapshot that a stream broke off the place
// in the logs may have moved on meanwhile; what it holds is told by the sums, and has not changed as long as they are the same.
func (s *staged) continued(n *staged) bool {
	if s == nil || s.snapshot != n.snapshot {
		return false
	}
	if !n.snapshot {
		return s.from == n.from && s.to == n.to
	}
	for i := range n.to {
		if s.to[i].Epoch != n.to[i].Epoch || s.to[i].Sum != n.to[i].Sum || n.to[i].Less(s.to[i]) {
			return false
		}
	}
	return true
}

// resume is what a node may spare when it sends the snapshot again; nil: nothing.
func (s *staged) resume() *syncv1.Resume {
	if s == nil || !s.snapshot || s.objects == 0 {
		return nil
	}
	return &syncv1.Resume{Catalog: wire(s.to[0]), Zone: wire(s.to[1]), Objects: s.objects, LastKind: uint32(s.last.Kind), LastId: s.last.ID}
}

func headOf(u *syncv1.TableUpdate) (*staged, error) {
	n := &staged{snapshot: u.Snapshot}
	var err error
	read := func(p *syncv1.Position, into *revision.Revision) {
		sum, e := revision.FromBytes(p.GetSum())
		if e != nil && err == nil {
			err = fault.New(fault.Invalid, ReasonMalformed, "read a position of an update: %w", e)
		}
		*into = revision.Revision{Epoch: p.GetEpoch(), Index: p.GetIndex(), Sum: sum}
	}
	read(u.CatalogTo, &n.to[0])
	read(u.ZoneTo, &n.to[1])
	if !u.Snapshot {
		read(u.CatalogFrom, &n.from[0])
		read(u.ZoneFrom, &n.from[1])
	}
	return n, err
}

// apply makes the table that follows from held. It refuses what does not fit it.
func (s *staged) apply(held *policy.Table, region string) (*policy.Table, error) {
	if s.snapshot && s.removes {
		return nil, fault.New(fault.Invalid, ReasonMalformed, "a snapshot removes objects")
	}
	if !s.snapshot && (held == nil || held.Catalog() != s.from[0] || held.Zone() != s.from[1]) {
		return nil, fault.New(fault.Conflict, ReasonPosition, "update from %s and %s to %s and %s does not follow from what is held, %s and %s",
			s.from[0], s.from[1], s.to[0], s.to[1], held.Catalog(), held.Zone())
	}
	next, err := s.edit.Table(held, s.to[0], s.to[1])
	if err != nil {
		return nil, fmt.Errorf("apply update to %s and %s: %w", s.to[0], s.to[1], err)
	}
	if next.Settings().Region != region {
		return nil, fault.New(fault.Denied, ReasonWrongEdge, "table is made for region %q", next.Settings().Region)
	}
	return next, nil
}

// stale refuses to go back: an older epoch, or an older place in the same one.
func (s *staged) stale(floor [2]revision.Revision) error {
	to, held := grant.At{Catalog: s.to[0], Store: s.to[1]}, grant.At{Catalog: floor[0], Store: floor[1]}
	if log := to.Behind(held); log != "" {
		return fault.New(fault.Conflict, ReasonStale, "update brings the %s back: catalog %s and zone %s, held are %s and %s", log, s.to[0], s.to[1], floor[0], floor[1])
	}
	return nil
}
