package dataplane

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
)

func TestDebug_OnlyThisMachineIsTold(t *testing.T) {
	e := &Edge{tables: &policy.Holder{}, cfg: Config{Name: "eu-west-edge-1", HTTPS: ":443", Public: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Logger: slog.New(slog.DiscardHandler),
		JoinTokenFile: "/secret/token", CAFile: "/secret/ca", ControlURLs: []string{"https://secret:1"}, Traces: Traces{Header: http.Header{"Authorization": {"secret"}}, RootsPEM: []byte("secret")}, ACME: ACME{Email: "secret@example.com", RootsPEM: []byte("secret")}}}
	mux := http.NewServeMux()
	e.debug(mux)
	for _, c := range []struct {
		from, host string
		status     int
	}{
		{"127.0.0.1:1234", "127.0.0.1:7900", 200}, {"[::1]:1234", "localhost:7900", 200}, {"[::1]:1234", "[::1]:7900", 200},
		{"192.0.2.7:1234", "127.0.0.1:7900", 403}, {"127.0.0.1:1234", "rebound.example:7900", 403}, {"127.0.0.1:1234", "192.0.2.1:7900", 403},
	} {
		r := httptest.NewRequest("GET", "/debug/config", nil)
		r.RemoteAddr, r.Host = c.from, c.host
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("from %s to %s: %d, want %d", c.from, c.host, w.Code, c.status)
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("it tells a secret: %s", w.Body)
		}
		var got map[string]any
		if c.status == 200 && (json.Unmarshal(w.Body.Bytes(), &got) != nil || got["name"] != "eu-west-edge-1") {
			t.Errorf("not the configuration: %s", w.Body)
		}
	}
}

// What an operator sets, and asks for when something is odd, is there: a field that is new is put into one of the two.
func TestDebug_EachFieldIsShownOrKept(t *testing.T) {
	kept := map[string]bool{ // secrets, files that were read at the start, and what is no setting
		"ControlURLs": true, "CAFile": true, "JoinTokenFile": true, "Inherit": true, "Serving": true, "Logger": true,
		"Traces.Header": true, "Traces.RootsPEM": true, "ACME.Email": true, "ACME.RootsPEM": true,
	}
	var look func(path string, v reflect.Value)
	shown := func(set func(c *Config)) string {
		e := &Edge{tables: &policy.Holder{}}
		set(&e.cfg)
		e.self.Region, e.self.Zone = e.cfg.Region, "emea"
		out, err := json.Marshal(e.shown())
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	none := shown(func(*Config) {})
	look = func(path string, v reflect.Value) {
		for i := range v.NumField() {
			name := path + v.Type().Field(i).Name
			switch f := v.Field(i); {
			case kept[name]:
			case f.Kind() == reflect.Struct:
				look(name+".", f)
			default:
				got := shown(func(c *Config) {
					at := reflect.ValueOf(c).Elem()
					for part := range strings.SplitSeq(name, ".") {
						at = at.FieldByName(part)
					}
					switch at.Kind() {
					case reflect.String:
						at.SetString("127.0.0.9:1234")
					case reflect.Int, reflect.Int64:
						at.SetInt(7654321)
					case reflect.Float64:
						at.SetFloat(0.125)
					case reflect.Bool:
						at.SetBool(true)
					case reflect.Slice:
						at.Set(reflect.MakeSlice(at.Type(), 1, 1))
					default:
						t.Fatalf("%s is of a kind that this test does not know", name)
					}
				})
				if got == none {
					t.Errorf("%s changes nothing of /debug/config: show it, or say here why it is kept", name)
				}
			}
		}
	}
	look("", reflect.ValueOf(Config{}))
}

func TestDebug_UpstreamsSayWhatIsWrong(t *testing.T) {
	out, err := json.Marshal(upstreamsShown([]failover.Report{
		{Zone: "emea", API: "orders", Target: "https://b", Phase: "ejected", Why: "certificate is for other.internal", Latency: 1234567},
		{Zone: "emea", API: "orders", Target: "https://c", Phase: "ejected", GoodFor: 4_200_400 * time.Microsecond},
		{Zone: "emea", API: "orders", Target: "https://a", Phase: "healthy", Busy: 2}}))
	want := `[{"api":"emea/orders","upstream":"https://a","state":"healthy","requests_in_flight":2,"requests_waiting":0,"latency":"0s"},` +
		`{"api":"emea/orders","upstream":"https://b","state":"ejected","error":"certificate is for other.internal","requests_in_flight":0,"requests_waiting":0,"latency":"1.235ms"},` +
		`{"api":"emea/orders","upstream":"https://c","state":"ejected","good_for":"4.2s","requests_in_flight":0,"requests_waiting":0,"latency":"0s"}]`
	if err != nil || string(out) != want {
		t.Errorf("got %s, %v; want %s", out, err, want)
	}
}
