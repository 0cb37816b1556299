package subscribe

import (
	"crypto/ed25519"
	"fmt"

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

// open verifies a signed message and that it is for this edge.
func (c *Client) open(signed *syncv1.Signed) (*syncv1.TableUpdate, error) {
	if !ed25519.Verify(c.cfg.SigningKey, table.SignedBytes(c.cfg.Edge, signed.GetPayload()), signed.GetSignature()) {
		return nil, fault.New(fault.Denied, ReasonSignature, "signature of an update is not that of zone %s for edge %s", c.cfg.Zone, c.cfg.Edge)
	}
	u := new(syncv1.TableUpdate)
	if err := proto.Unmarshal(signed.Payload, u); err != nil {
		return nil, fault.New(fault.Invalid, ReasonMalformed, "read update: %w", err)
	}
	if u.Edge != c.cfg.Edge || u.Region != c.cfg.Region || u.Zone != c.cfg.Zone {
		return nil, fault.New(fault.Denied, ReasonWrongEdge, "update is for edge %q in region %q of zone %q", u.Edge, u.Region, u.Zone)
	}
	return u, nil
}

// staged collects the parts of one update.
type staged struct {
	snapshot bool
	from, to [2]revision.Revision // catalog, zone
	upserts  []table.Object
	removals []table.ObjectKey
	parts    [][]byte // Signed messages as received
	bytes    int64
}

// add takes one part; whole says that it was the last.
func (s *staged) add(u *syncv1.TableUpdate, raw []byte, limit int64) (next *staged, whole bool, err error) {
	n, err := headOf(u)
	if err != nil {
		return nil, false, err
	}
	switch same := s != nil && s.snapshot == n.snapshot && s.from == n.from && s.to == n.to; {
	case same:
		n = s
	case s != nil && !n.snapshot:
		// Only a snapshot may break off what is staged: it does not rest on it.
		return nil, false, fault.New(fault.Conflict, ReasonPosition, "update %s begins while another is not whole", n.to[1])
	}
	if n.bytes += int64(len(raw)); n.bytes > limit {
		return nil, false, fault.New(fault.TooLarge, ReasonTooLarge, "update is larger than %d bytes", limit)
	}
	for _, o := range u.Upserts {
		if o.GetKind() == 0 || o.GetKind() > 255 {
			return nil, false, fault.New(fault.Invalid, ReasonMalformed, "object %q has kind %d", o.GetId(), o.GetKind())
		}
		n.upserts = append(n.upserts, table.Object{Kind: table.Kind(o.Kind), ID: o.Id, Data: o.Data})
	}
	for _, k := range u.Removals {
		if k.GetKind() == 0 || k.GetKind() > 255 {
			return nil, false, fault.New(fault.Invalid, ReasonMalformed, "removal %q has kind %d", k.GetId(), k.GetKind())
		}
		n.removals = append(n.removals, table.ObjectKey{Kind: table.Kind(k.Kind), ID: k.Id})
	}
	n.parts = append(n.parts, raw)
	return n, !u.More, nil
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
	var (
		next *policy.Table
		err  error
	)
	if s.snapshot {
		if len(s.removals) > 0 {
			return nil, fault.New(fault.Invalid, ReasonMalformed, "a snapshot removes objects")
		}
		next, err = policy.NewTable(s.upserts, s.to[0], s.to[1])
	} else {
		if held == nil || held.Catalog() != s.from[0] || held.Zone() != s.from[1] {
			return nil, fault.New(fault.Conflict, ReasonPosition, "update from %s and %s to %s and %s does not follow from what is held, %s and %s",
				s.from[0], s.from[1], s.to[0], s.to[1], held.Catalog(), held.Zone())
		}
		next, err = held.Apply(s.upserts, s.removals, s.to[0], s.to[1])
	}
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
