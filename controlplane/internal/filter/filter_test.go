package filter_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/filter"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

var (
	api = &adminv1.API{Zone: "emea", Hosts: []string{"orders.emea.test", "o.emea.test"}, Labels: []string{"team=billing", "tier=1"}, Upstreams: []*adminv1.Upstream{{Region: "eu-west", Url: "http://a"}, {Region: "eu-central", Url: "http://b"}},
		Routes: []*adminv1.Route{{Name: "all", Timeout: durationpb.New(5 * time.Second), MaxRequestBytes: 10}}}
	res = &adminv1.Resource{Name: "orders", UpdatedAt: timestamppb.New(time.Date(2026, 11, 26, 3, 0, 0, 0, time.UTC)), Spec: &adminv1.Resource_Api{Api: api}}
)

func match(t *testing.T, text string) (bool, error) {
	t.Helper()
	f, err := filter.Parse(text, api.ProtoReflect().Descriptor(), res.ProtoReflect().Descriptor())
	if err != nil {
		return false, err
	}
	return f.Match(api.ProtoReflect(), res.ProtoReflect()), nil
}

func TestFilter_Match(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                   true,
		"zone=emea":                          true,
		"spec.zone=emea":                     true,
		"zone=us":                            false,
		"zone!=us":                           true,
		"name=ord*":                          true,
		"name=*ers":                          true,
		"name=*rde*":                         true,
		"name=ord":                           false,
		"name:RDE":                           true,
		"hosts=o.emea.test":                  true, // any of a list
		"hosts!=o.emea.test":                 false,
		"hosts!=x":                           true,
		"upstreams.region=eu-central":        true,
		"upstreams.region=eu-north":          false,
		"labels.team=billing":                true,
		"spec.labels.team=billing":           true,
		"labels.team=bill*":                  true,
		"labels.team=b":                      false,
		"labels.team!=b":                     true,
		"labels.team!=billing":               false,
		"labels.team:ill":                    true,
		"labels.team:*":                      true,
		"labels.te:*":                        false,
		"labels.te=am":                       false,
		"labels.tier>0":                      true,
		"NOT labels.owner:*":                 true,
		`labels="tier=1"`:                    true,
		"labels:tier":                        true,
		"policy:*":                           false,
		"hosts:*":                            true,
		"health:*":                           false,
		"health.path=x":                      false,
		"routes.max_request_bytes>9":         true,
		"routes.max_request_bytes>10":        false,
		"routes.timeout<=5s":                 true,
		"updated_at>2026-11-26T02:59:59Z":    true,
		"updated_at<2026-11-26T02:59:59Z":    false,
		"zone=us OR name=orders":             true,
		"zone=us OR zone=uk":                 false,
		"zone=emea AND name=x":               false,
		"zone=emea name=orders":              true,
		"zone=us name=orders OR zone=emea":   true, // AND binds closer
		"zone=us (name=orders OR zone=emea)": false,
		"NOT zone=us":                        true,
		"NOT (zone=emea OR zone=us)":         false,
		`name="orders"`:                      true,
		`hosts:"emea test"`:                  false,
		"NOT NOT zone=emea":                  true,
		"zone >= emea zone < us":             true,
		"(((((zone=emea)))))":                true,
		"  zone  =  emea  ":                  true,
		"summary=\"\"":                       true,
		"name=\"OR\" OR zone=emea":           true,
		"name='orders' AND NOT upstreams.url=http*zzz": true,
	} {
		if got, err := match(t, text); err != nil || got != want {
			t.Errorf("%s: got %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestFilter_Refuses(t *testing.T) {
	for text, reason := range map[string]string{
		"zon=emea":                       filter.ReasonField,
		"upstreams.colour=1":             filter.ReasonField,
		"zone.deeper=1":                  filter.ReasonField,
		"updated_at.seconds=1":           filter.ReasonField,
		"zone":                           filter.ReasonSyntax,
		"zone=":                          filter.ReasonSyntax,
		"=emea":                          filter.ReasonSyntax,
		"zone=emea OR":                   filter.ReasonSyntax,
		"(zone=emea":                     filter.ReasonSyntax,
		"zone=emea)":                     filter.ReasonSyntax,
		"zone!emea":                      filter.ReasonSyntax,
		`name="orders`:                   filter.ReasonSyntax,
		"zone=emea\x00":                  filter.ReasonSyntax,
		"\xff":                           filter.ReasonSyntax,
		"upstreams=x":                    filter.ReasonSyntax,
		"routes.max_request_bytes>ten":   filter.ReasonSyntax,
		"updated_at>yesterday":           filter.ReasonSyntax,
		"routes.timeout<5":               filter.ReasonSyntax,
		strings.Repeat("(", 100) + "a=b": filter.ReasonSyntax,
		strings.Repeat("NOT ", 100) + "zone=emea": filter.ReasonSyntax,
		strings.Repeat("zone=a ", 65):             filter.ReasonSyntax,
		strings.Repeat(" ", 1025):                 filter.ReasonSyntax,
	} {
		_, err := match(t, text)
		if f, ok := fault.As(err); !ok || f.Reason != reason || f.Field != "filter" {
			t.Errorf("%.40q: got %v, want %s at filter", text, err, reason)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("zone=emea (name:x OR NOT hosts:*) updated_at>2026-11-26T02:59:59Z")
	f.Fuzz(func(t *testing.T, text string) {
		if ok, err := match(t, text); err == nil {
			_ = ok
		}
	})
}
