package calendar_test

import (
	"archive/zip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/calendar"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// zones names every zone of the database that Go ships.
func zones(t *testing.T) []string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.OpenReader(filepath.Join(strings.TrimSpace(string(root)), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var names []string
	for _, f := range r.File {
		if !strings.HasSuffix(f.Name, "/") && f.Name != "Factory" {
			names = append(names, f.Name)
		}
	}
	if len(names) < 500 {
		t.Fatalf("the database has %d zones, want several hundred: this proves nothing", len(names))
	}
	return names
}

// What folding rests on: a cell of 15 minutes lies in one local hour, day, month and year of every zone. It does if
// every offset in use is a multiple of a cell and every change of offset happens at the edge of one.
func TestEveryZone_LocalTimeBeginsAtTheEdgeOfACell(t *testing.T) {
	from, to := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	changes, odd := 0, map[int]bool{}
	for _, name := range zones(t) {
		loc, err := calendar.Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for at := from; at.Before(to); {
			local := at.In(loc)
			_, offset := local.Zone()
			if offset%usage.CellSeconds != 0 {
				t.Errorf("%s at %v: offset %d s is no multiple of a cell", name, at, offset)
			}
			odd[offset%3600] = true
			// The units around each change, where calendars go wrong.
			for _, near := range []time.Duration{0, -time.Hour, time.Hour, 25 * time.Hour} {
				checkSpans(t, name, at.Add(near), loc)
			}
			_, next := local.ZoneBounds()
			if next.IsZero() {
				break
			}
			if _, after := next.Zone(); after != offset && next.Unix()%usage.CellSeconds != 0 {
				t.Errorf("%s changes its offset at %v, inside a cell", name, next)
			}
			changes++
			at = next
		}
	}
	if changes < 1000 || !odd[1800] || !odd[2700] {
		t.Errorf("saw %d changes of offset and these parts of an hour: %v; want thousands, and 30 and 45 minutes", changes, odd)
	}
}

func checkSpans(t *testing.T, name string, at time.Time, loc *time.Location) {
	t.Helper()
	for _, unit := range calendar.Units() {
		start, end := calendar.Span(at, unit, loc)
		if start.After(at) || !end.After(at) {
			t.Errorf("%s: %s around %v is [%v, %v)", name, unit, at, start, end)
		}
		if start.Unix()%usage.CellSeconds != 0 || end.Unix()%usage.CellSeconds != 0 {
			t.Errorf("%s: %s around %v is [%v, %v), not at edges of cells", name, unit, at, start, end)
		}
		label := calendar.Label(at, unit, loc)
		if got := calendar.Label(start, unit, loc); got != label {
			t.Errorf("%s: %s %s begins at %v, which is in %s", name, unit, label, start, got)
		}
		if got := calendar.Label(end.Add(-time.Second), unit, loc); got != label {
			t.Errorf("%s: %s %s ends at %v, but its last second is in %s", name, unit, label, end, got)
		}
		if before, _ := calendar.Span(start.Add(-time.Second), unit, loc); !before.Before(start) || unit != calendar.Hour && calendar.Label(start.Add(-time.Second), unit, loc) == label {
			t.Errorf("%s: %s %s begins before %v", name, unit, label, start)
		}
	}
}

func TestSpan_DaysThatAreNot24Hours(t *testing.T) {
	for _, c := range []struct {
		zone, at, unit, start string
		length                time.Duration
	}{
		{"Europe/Berlin", "2026-03-29T12:00:00Z", "day", "2026-03-28T23:00:00Z", 23 * time.Hour},
		{"Europe/Berlin", "2026-10-25T12:00:00Z", "day", "2026-10-24T22:00:00Z", 25 * time.Hour},
		{"Africa/Cairo", "2026-04-24T12:00:00Z", "day", "2026-04-23T22:00:00Z", 23 * time.Hour}, // midnight does not exist
		{"America/Havana", "2026-11-01T12:00:00Z", "day", "2026-11-01T04:00:00Z", 25 * time.Hour},
		{"Asia/Kathmandu", "2026-11-25T12:00:00Z", "month", "2026-10-31T18:15:00Z", 30 * 24 * time.Hour},
		{"Australia/Lord_Howe", "2026-04-05T03:00:00Z", "day", "2026-04-04T13:00:00Z", 24*time.Hour + 30*time.Minute},
		{"Asia/Kolkata", "2026-11-25T12:10:00Z", "hour", "2026-11-25T11:30:00Z", time.Hour},
		{"", "2026-11-25T12:10:00Z", "week", "2026-11-23T00:00:00Z", 7 * 24 * time.Hour},
		{"Pacific/Auckland", "2026-12-31T12:00:00Z", "year", "2026-12-31T11:00:00Z", 365 * 24 * time.Hour},
	} {
		loc, err := calendar.Load(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, _ := time.Parse(time.RFC3339, c.at)
		start, end := calendar.Span(at, c.unit, loc)
		if got := start.UTC().Format(time.RFC3339); got != c.start || end.Sub(start) != c.length {
			t.Errorf("%s of %s in %s begins %s and lasts %v, want %s and %v", c.unit, c.at, c.zone, got, end.Sub(start), c.start, c.length)
		}
	}
}

func TestLabel_RepeatedHourIsTwo(t *testing.T) {
	loc, _ := calendar.Load("Europe/Berlin")
	at := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC)
	first, second := calendar.Label(at, calendar.Hour, loc), calendar.Label(at.Add(time.Hour), calendar.Hour, loc)
	if first != "2026-10-25T02:00+02:00" || second != "2026-10-25T02:00+01:00" {
		t.Errorf("the repeated hour is %s and %s", first, second)
	}
}

func TestLoad_RefusesWhatIsNoZone(t *testing.T) {
	for _, name := range []string{"Mars/Olympus", "Local", "local", "localtime", "../../etc/passwd", "/etc/localtime", "right/UTC", "posix/UTC", "zone.tab", "\x00", strings.Repeat("a", 5000)} {
		if _, err := calendar.Load(name); fault.ReasonOf(err) != calendar.ReasonUnknown {
			t.Errorf("Load(%.20q) = %v, want %s", name, err, calendar.ReasonUnknown)
		}
	}
}
