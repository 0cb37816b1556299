package trace

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Span is what is said of a request, or of one attempt: names of the catalog, numbers, and words of closed lists.
type Span struct {
	Method   string // of a closed list
	Protocol string // 1.1, 2 or 3; "": neither
	API      string
	Route    string
	Plan     string
	Class    string // of the plan: free to platinum
	Outcome  string // of the usage row
	Reason   string // of the edge's own answer
	Region   string // whose upstream answered, or is asked
	Target   string // host:port that is asked, as the manifest names it
	Failure  string // why there is no answer, of a closed list
	Request  [16]byte
	Status   int
	Attempts int
	Number   int // which attempt it is; End counts them
	Cached   bool
	Relayed  bool // to another region
	Received bool // from another region
}

const (
	kindServer = 2
	kindClient = 3
	codeError  = 2
)

type span struct {
	Span
	context    Context
	id, parent [8]byte
	kind       byte
	began      time.Time
	took       time.Duration
}

// Numbers of fields are those of opentelemetry-proto's trace/v1, resource/v1 and common/v1. The SDK's exporter is not linked:
// it brings gRPC and its gateway into the edge, and takes attributes of any kind (DESIGN.md).

// appendRequest is an ExportTraceServiceRequest.
func appendRequest(b []byte, e *Edge, spans []span) []byte {
	var of, one, part, value []byte
	of = message(of, 1, func(r []byte) []byte { // Resource
		for _, kv := range [...][2]string{{"service.name", "bailiwick-edge"}, {"service.instance.id", e.Name}, {"service.version", e.Version},
			{"bailiwick.region", e.Region}, {"bailiwick.zone", e.Zone}} {
			r = text(r, 1, kv[0], kv[1])
		}
		return r
	})
	part = message(part, 1, func(s []byte) []byte { // InstrumentationScope
		return str(s, 1, "bailiwick")
	})
	for i := range spans {
		one = spans[i].append(one[:0])
		part = protowire.AppendTag(part, 2, protowire.BytesType)
		part = protowire.AppendBytes(part, one)
	}
	of = protowire.AppendTag(of, 2, protowire.BytesType)
	of = protowire.AppendBytes(of, part)
	value = protowire.AppendTag(b, 1, protowire.BytesType)
	return protowire.AppendBytes(value, of)
}

func (s *span) append(b []byte) []byte {
	b = raw(b, 1, s.context.trace[:])
	b = raw(b, 2, s.id[:])
	b = str(b, 3, s.context.state)
	if s.parent != [8]byte{} {
		b = raw(b, 4, s.parent[:])
	}
	name := s.Method
	switch {
	case s.kind == kindClient && s.Relayed:
		name += " relay"
	case s.kind == kindClient:
		name += " attempt"
	case s.Route != "":
		name += " " + s.API + "/" + s.Route
	default:
		name += " " + s.API
	}
	b = str(b, 5, name)
	b = number(b, 6, uint64(s.kind))
	start := s.began.UnixNano()
	b = fixed(b, 7, uint64(start))
	b = fixed(b, 8, uint64(start+int64(max(s.took, 0))))
	for _, kv := range [...][2]string{{"http.request.method", s.Method}, {"network.protocol.version", s.Protocol}, {"bailiwick.api", s.API}, {"bailiwick.route", s.Route},
		{"bailiwick.plan", s.Plan}, {"bailiwick.class", s.Class}, {"bailiwick.outcome", s.Outcome}, {"bailiwick.reason", s.Reason}, {"bailiwick.served_region", s.Region},
		{"bailiwick.target", s.Target}, {"error.type", s.Failure}} {
		b = text(b, 9, kv[0], kv[1])
	}
	if s.Request != [16]byte{} {
		b = text(b, 9, "bailiwick.request_id", uuid(s.Request))
	}
	for _, kv := range [...]struct {
		key string
		n   int
	}{{"http.response.status_code", s.Status}, {"bailiwick.attempts", s.Attempts}, {"bailiwick.attempt", s.Number}} {
		if kv.n != 0 {
			b = attribute(b, 9, kv.key, func(v []byte) []byte { return number(v, 3, uint64(kv.n)) })
		}
	}
	for _, kv := range [...]struct {
		key string
		is  bool
	}{{"bailiwick.cached", s.Cached}, {"bailiwick.relayed", s.Relayed}, {"bailiwick.received", s.Received}} {
		if kv.is {
			b = attribute(b, 9, kv.key, func(v []byte) []byte { return number(v, 2, 1) })
		}
	}
	if s.Status >= 500 || s.Failure != "" || s.kind == kindClient && s.Status >= 400 {
		b = message(b, 15, func(st []byte) []byte { return number(st, 3, codeError) })
	}
	b = protowire.AppendTag(b, 16, protowire.Fixed32Type)
	return protowire.AppendFixed32(b, uint32(s.context.flags))
}

func raw(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func str(b []byte, n protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func number(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func fixed(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, n, protowire.Fixed64Type), v)
}

func message(b []byte, n protowire.Number, fill func([]byte) []byte) []byte {
	return raw(b, n, fill(nil))
}

// text is an attribute, none if it has no value.
func text(b []byte, n protowire.Number, key, value string) []byte {
	if value == "" {
		return b
	}
	return attribute(b, n, key, func(v []byte) []byte { return str(v, 1, value) })
}

func attribute(b []byte, n protowire.Number, key string, value func([]byte) []byte) []byte {
	return message(b, n, func(kv []byte) []byte {
		return message(str(kv, 1, key), 2, value)
	})
}

func uuid(id [16]byte) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 36)
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, digits[c>>4], digits[c&15])
	}
	return string(b)
}

// rejected is how many spans of a request a receiver says that it did not take, in its ExportTraceServiceResponse. It may say
// any number, below 0 too; 0: it says none, or nothing that reads.
func rejected(answer []byte) (n int64) {
	whole := fields(answer, 1, protowire.BytesType, func(v []byte) bool {
		part, _ := protowire.ConsumeBytes(v)
		return fields(part, 1, protowire.VarintType, func(v []byte) bool {
			u, _ := protowire.ConsumeVarint(v)
			n = int64(u) // said twice, the last counts
			return true
		})
	})
	if !whole {
		return 0
	}
	return n
}

// fields has each see what begins with the value of a field, wherever it is said. false: b is no message, or one value is not.
func fields(b []byte, number protowire.Number, kind protowire.Type, each func(v []byte) bool) bool {
	for len(b) > 0 {
		n, t, size := protowire.ConsumeTag(b)
		if size < 0 || n > protowire.MaxValidNumber {
			return false
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(n, t, b); size < 0 {
			return false
		}
		if n == number && t == kind && !each(b) {
			return false
		}
		b = b[size:]
	}
	return true
}
