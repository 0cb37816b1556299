package adminapi

import (
	"context"
	"encoding/json"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

const (
	exportChunk = 64 << 10
	exportLimit = time.Hour        // of the whole, as long as its client reads (see exportStall)
	exportStep  = 20 * time.Second // of each part that is asked for at once
)

// Export writes all that the zone holds of a customer as one JSON document, section by section, so that its size
// costs no memory. What could not be read is named under "missing"; the digests of keys are left out, since they
// are the zone's secret and not the customer's data.
func (s *server) Export(ctx context.Context, req *adminv1.ExportRequest, stream *connect.ServerStream[adminv1.ExportResponse]) error {
	if s.Detail == nil || s.Ledger == nil {
		return fault.New(fault.Unimplemented, "DETAIL_OFF", "node %s keeps no detail", s.Node)
	}
	name := req.GetCustomer()
	if name == "" || len(name) > 63 {
		return fault.New(fault.Invalid, "FIELD_INVALID", "customer: want a name of 1 to 63 bytes").At("customer")
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	reason, err := s.reasonOf(ctx, req)
	if err != nil {
		return err
	}
	brief, done := context.WithTimeout(ctx, s.Wait)
	defer done()
	snap, err := s.fresh(brief, s.Store)
	if err != nil {
		return err
	}
	_, is := snap.Get(model.PrefixCustomer + name)
	if _, was := snap.Get(model.PrefixGone + name); !is && !was {
		return s.customerUnknown(name)
	}
	if err := s.record(brief, adminv1connect.CustomerServiceExportProcedure, []string{name}, reason); err != nil {
		return err
	}
	w := &exporter{stream: stream}
	w.open("{")
	w.value("format", "bailiwick-export/1")
	w.value("zone", s.Zone)
	w.value("exported_at", time.Now().UTC().Truncate(time.Second))
	w.stored(snap.Get, "customer", model.PrefixCustomer+name)
	w.stored(snap.Get, "gone", model.PrefixGone+name)
	w.stored(snap.Get, "erasure", model.PrefixErasure+name)
	w.list("keys", func() error {
		for kv := range snap.List(model.PrefixKey) {
			k, err := model.Decode[model.Key](kv.Key, kv.Value)
			if err != nil {
				return err
			}
			if k.Customer == name {
				k.DigestHex = ""
				w.item(map[string]any{"id": k.ID, "subscription": k.Subscription, "plan": k.Plan, "status": k.Status, "created_at": k.CreatedAt})
			}
		}
		return nil
	})
	w.list("usage", func() error { return s.exportCells(ctx, name, w) })
	w.answer(ctx, "corrections", func(ctx context.Context) (proto.Message, error) {
		return s.ListCorrections(ctx, &adminv1.ListCorrectionsRequest{Customer: name})
	})
	if is { // of one who is gone the top-ups are left
		w.answer(ctx, "quotas", func(ctx context.Context) (proto.Message, error) {
			return s.GetQuotas(ctx, &adminv1.GetQuotasRequest{Customer: name})
		})
	} else {
		w.list("top_ups", func() error {
			list, err := s.topUps(ctx, name)
			for _, t := range list {
				w.message(t)
			}
			return err
		})
	}
	w.list("webhooks", func() error {
		for kv := range snap.List(model.PrefixWebhook) {
			h, err := model.Decode[alert.Webhook](kv.Key, kv.Value)
			if err != nil {
				return err
			}
			if h.Customer == name {
				w.message(webhookToProto(h))
			}
		}
		return nil
	})
	w.answer(ctx, "alerts", func(ctx context.Context) (proto.Message, error) {
		return s.ListAlerts(ctx, &adminv1.ListAlertsRequest{Customer: name})
	})
	w.list("detail", func() error {
		unreachable, err := s.Detail.Rows(ctx, name, func(rows []*adminv1.TraceRow) error {
			for _, r := range rows {
				w.message(r)
			}
			return w.err
		})
		for _, node := range unreachable {
			w.missing = append(w.missing, "detail on node "+node)
		}
		return err
	})
	w.value("missing", append([]string{}, w.missing...))
	w.raw("\n}\n")
	w.flush()
	return w.err
}

func (s *server) exportCells(ctx context.Context, name string, w *exporter) error {
	v, err := s.view(ctx)
	if err != nil {
		return err
	}
	defer v.Close()
	return v.Cells(ctx, name, time.Unix(0, 0), time.Now().Add(24*time.Hour), func(r ledger.Row) error {
		c := r.Cell
		w.item(map[string]any{"cell": time.Unix(c.Start, 0).UTC(), "subscription": c.Subscription, "plan": c.Plan, "plan_rev": c.PlanRev, "product": c.Product,
			"api": c.API, "route": c.Route, "outcome": c.Outcome.String(), "served_region": c.ServedRegion,
			"requests": r.Sums.Requests, "units": r.Sums.Units, "bytes_in": r.Sums.BytesIn, "bytes_out": r.Sums.BytesOut})
		return w.err
	})
}

// exporter writes one JSON object in chunks and remembers the first error, after which it writes nothing.
type exporter struct {
	stream  *connect.ServerStream[adminv1.ExportResponse]
	buf     []byte
	members int // of the object
	items   int // of the list that is open
	missing []string
	err     error
}

func (w *exporter) raw(text string) {
	if w.buf = append(w.buf, text...); len(w.buf) >= exportChunk {
		w.flush()
	}
}

func (w *exporter) flush() {
	if w.err == nil && len(w.buf) > 0 {
		w.err = w.stream.Send(&adminv1.ExportResponse{Chunk: w.buf})
	}
	w.buf = nil
}

func (w *exporter) open(text string) { w.raw(text) }

func (w *exporter) member(name string) {
	if w.members++; w.members > 1 {
		w.raw(",")
	}
	w.raw("\n  \"" + name + "\": ")
}

func (w *exporter) json(v any) {
	b, err := json.Marshal(v)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.raw(string(b))
}

func (w *exporter) value(name string, v any) {
	w.member(name)
	w.json(v)
}

// stored is a record as it rests; a record that is not there is no member.
func (w *exporter) stored(read func(string) (kv group.KV, ok bool), name, key string) {
	if kv, ok := read(key); ok {
		w.value(name, json.RawMessage(kv.Value))
	}
}

func (w *exporter) list(name string, fill func() error) {
	w.member(name)
	w.raw("[")
	w.items = 0
	if err := fill(); err != nil && w.err == nil {
		w.missing = append(w.missing, name+": "+err.Error())
	}
	w.raw("]")
}

func (w *exporter) next() {
	if w.items++; w.items > 1 {
		w.raw(",")
	}
	w.raw("\n    ")
}

func (w *exporter) item(v any) {
	w.next()
	w.json(v)
}

func (w *exporter) message(m proto.Message) {
	w.next()
	w.proto(m)
}

func (w *exporter) proto(m proto.Message) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.raw(string(b))
}

// answer is what another procedure of this API says. A part that is not there is named as missing.
func (w *exporter) answer(ctx context.Context, name string, ask func(context.Context) (proto.Message, error)) {
	ctx, cancel := context.WithTimeout(ctx, exportStep)
	defer cancel()
	m, err := ask(ctx)
	if err != nil {
		w.missing = append(w.missing, name+": "+err.Error())
		return
	}
	w.member(name)
	w.proto(m)
}
