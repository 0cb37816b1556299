package adminapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/filter"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// Limits of one page.
const (
	DefaultPage = 1000  // items, where none are asked for
	MaxPage     = 10000 // items, as services.proto says
	pageBytes   = 4 << 20
)

// paged is what every request for a list has.
type paged interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
	GetFilter() string
}

// page is one request for a part of a list.
type page struct {
	size   int
	after  string // the place of the last item that the caller has; "": from the start
	query  string
	filter *filter.Filter
}

// pageOf reads what a request says of pages. types are what its filter speaks of.
func (s *server) pageOf(req paged, types ...protoreflect.MessageDescriptor) (page, error) {
	p := page{size: int(req.GetPageSize())}
	if p.size <= 0 {
		p.size = DefaultPage
	}
	p.size = min(p.size, MaxPage)
	var err error
	if p.filter, err = filter.Parse(req.GetFilter(), types...); err != nil {
		return p, err
	}
	// The token goes on with one list of one zone under one filter: with another it would skip what nobody has seen.
	q := proto.Clone(req).ProtoReflect()
	for _, name := range []protoreflect.Name{"page_size", "page_token"} {
		q.Clear(q.Descriptor().Fields().ByName(name))
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(q.Interface())
	if err != nil {
		return p, fmt.Errorf("digest of a list's request: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", s.Zone, q.Descriptor().FullName(), text))
	p.query = string(sum[:8])
	if req.GetPageToken() == "" {
		return p, nil
	}
	token, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil || len(token) <= len(p.query) || string(token[:len(p.query)]) != p.query {
		return p, fault.New(fault.Invalid, "PAGE_TOKEN_INVALID", "this page_token goes on with another list: give it with the request that it came from, filter included, or begin without one").At("page_token")
	}
	p.after = string(token[len(p.query):])
	return p, nil
}

// token is what leads on from an item at a place.
func (p page) token(at string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(p.query + at))
}

// placed is an item of a list and its place in it.
type placed[T proto.Message] struct {
	at   string
	item T
}

// take fills a page from items that come in the order of their places, all of them behind p.after.
func take[T proto.Message](p page, items iter.Seq2[placed[T], error]) (out []T, next string, err error) {
	bytes, last := 0, ""
	for one, err := range items {
		if err != nil {
			return nil, "", err
		}
		n := proto.Size(one.item)
		if len(out) == p.size || len(out) > 0 && bytes+n > pageBytes {
			return out, p.token(last), nil
		}
		out, bytes, last = append(out, one.item), bytes+n, one.at
	}
	return out, "", nil
}

// places say in which order what is listed comes, and tell any two items apart. Nothing of a place changes while an item
// lives, but for a proposal's that was decided meanwhile: that comes again rather than never.
var places = map[protoreflect.Name][]string{
	"Key":          {"customer", "created_at", "id"},
	"Node":         {"zone", "kind", "name"},
	"Operator":     {"name", "token_id"},
	"Approval":     {"decided", "-proposed_at", "id"},
	"GroupMember":  {"group", "node", "server"},
	"LedgerEpoch":  {"edge", "epoch"},
	"Correction":   {"at", "id"},
	"ClosedPeriod": {"day"},
	"SinkPosition": {"name"},
	"UsageRefusal": {"edge", "reason"},
	"Webhook":      {"name"},
	"Alert":        {"-raised_at", "id"},
	"RegionState":  {"name"},
	"Rollout":      {"-began_at", "name"},
}

func placeOf(m protoreflect.Message) string {
	var b strings.Builder
	for _, name := range places[m.Descriptor().Name()] {
		name, down := strings.CutPrefix(name, "-")
		f := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		switch {
		case name == "decided": // what waits comes first
			status := m.Get(m.Descriptor().Fields().ByName("status")).String()
			fmt.Fprint(&b, status != model.ProposalPending && status != model.ProposalApproved) // false, true
		case f.Kind() == protoreflect.StringKind:
			b.WriteString(m.Get(f).String())
		case f.Kind() == protoreflect.MessageKind:
			at := m.Get(f).Message().Interface().(*timestamppb.Timestamp).AsTime().UnixMicro()
			if down {
				at = math.MaxInt64 - at
			}
			fmt.Fprintf(&b, "%020d", at)
		default:
			fmt.Fprintf(&b, "%020d", m.Get(f).Uint())
		}
		b.WriteByte(0)
	}
	return b.String()
}

// listField is the one list of messages of an answer.
func listField(d protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); f.IsList() && f.Message() != nil {
			return f
		}
	}
	return nil
}

// paging cuts the answers of lists that are short enough to be made whole first. List and ListKeys, which may be long, cut
// their own.
func (s *server) paging() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, call connect.AnyRequest) (connect.AnyResponse, error) {
			req, ok := call.Any().(paged)
			if !ok || ownPages[req.ProtoReflect().Descriptor().Name()] {
				return next(ctx, call)
			}
			field := listField(call.Spec().Schema.(protoreflect.MethodDescriptor).Output())
			p, err := s.pageOf(req, field.Message())
			if err != nil {
				return nil, err
			}
			resp, err := next(ctx, call)
			if err != nil {
				return nil, err
			}
			p.cut(resp.Any().(proto.Message).ProtoReflect(), field)
			return resp, nil
		}
	}
}

var ownPages = map[protoreflect.Name]bool{"ListRequest": true, "ListKeysRequest": true}

// cut leaves of an answer's list what the page holds.
func (p page) cut(resp protoreflect.Message, field protoreflect.FieldDescriptor) {
	whole := resp.Get(field).List()
	var items []placed[proto.Message]
	for i := range whole.Len() {
		m := whole.Get(i).Message()
		if at := placeOf(m); at > p.after && p.filter.Match(m) {
			items = append(items, placed[proto.Message]{at, m.Interface()})
		}
	}
	out, token, _ := sorted(p, items) // only its items could fail
	list := resp.NewField(field).List()
	for _, m := range out {
		list.Append(protoreflect.ValueOfMessage(m.ProtoReflect()))
	}
	resp.Set(field, protoreflect.ValueOfList(list))
	resp.Set(resp.Descriptor().Fields().ByName("next_page_token"), protoreflect.ValueOfString(token))
}

// sorted fills a page from items in any order.
func sorted[T proto.Message](p page, items []placed[T]) ([]T, string, error) {
	slices.SortStableFunc(items, func(a, b placed[T]) int { return cmp.Compare(a.at, b.at) })
	return take(p, func(yield func(placed[T], error) bool) {
		for _, one := range items {
			if !yield(one, nil) {
				return
			}
		}
	})
}
