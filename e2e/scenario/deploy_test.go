package scenario

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"bailiwick/e2e/harness"
)

// What deploy/ tells people to type must be what the programs take. The page itself is run by make follow.

var (
	// Where a command may stand: not among the arguments of another, as a user of that name does.
	callRE  = regexp.MustCompile(`(?:^|(?:\||;|until|do|\() *|/usr/local/bin/)(bailiwick(?:-control|-edge)?|bw) ([^|;&<>\x60#]*)`)
	flagRE  = regexp.MustCompile(`(?m)^\s+(?:-(\w), )?--?([a-z][a-z0-9-]*)`)
	groupRE = regexp.MustCompile(`(?m)^Available Commands:`)
)

type deployed struct {
	t    *testing.T
	root string
	help map[string]string // by command line
	seen int               // flags that were looked up
}

func newDeployed(t *testing.T) *deployed {
	return &deployed{t: t, root: harness.Root(t), help: map[string]string{}}
}

func (d *deployed) read(parts ...string) string {
	d.t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{d.root, "deploy"}, parts...)...))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

func (d *deployed) program(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(d.root, "bin", args[0]), args[1:]...).CombinedOutput()
	return string(out), err
}

// check looks up each flag of a command line in the help of exactly that command, and returns what is wrong.
func (d *deployed) check(args []string) error {
	command := args[:1]
	if args[0] != "bailiwick-edge" {
		for _, a := range args[1:] {
			if strings.HasPrefix(a, "-") {
				break
			}
			command = append(command, a)
		}
	}
	line := strings.Join(command, " ")
	help, ok := d.help[line]
	if !ok {
		var err error
		if help, err = d.program(append(slices.Clone(command), "--help")...); err != nil {
			return fmt.Errorf("%s --help: %w: %s", line, err, help)
		}
		if args[0] == "bailiwick" && groupRE.MatchString(help) && !regexp.MustCompile(`(?m)^  `+line+` .*\[flags\]$`).MatchString(help) {
			return fmt.Errorf("%s is a group of commands, or no command", line)
		}
		d.help[line] = help
	}
	flags := map[string]bool{}
	for _, m := range flagRE.FindAllStringSubmatch(help, -1) {
		flags["-"+m[1]], flags["-"+m[2]], flags["--"+m[2]] = true, true, true
	}
	for _, a := range args[len(command):] {
		name, _, _ := strings.Cut(a, "=")
		if len(name) < 2 || name[0] != '-' || name == "--help" {
			continue
		}
		d.seen++
		if !flags[name] {
			return fmt.Errorf("%s has no flag %s", line, name)
		}
	}
	return nil
}

// calls are the command lines of our programs in a text, with lines that end in a backslash joined.
func calls(text string) (found [][]string) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		for _, m := range callRE.FindAllStringSubmatch(strings.TrimSpace(line), -1) {
			if args := strings.Fields(strings.NewReplacer(`"`, "", `'`, "", ")", "").Replace(m[2])); len(args) > 0 && args[0] != "$@" {
				found = append(found, append([]string{strings.Replace(m[1], "bw", "bailiwick", 1)}, args...)) // bw is the page's own name for it in a container
			}
		}
	}
	return found
}

// fenced are the code blocks of a page: prose names programs without calling them.
func fenced(page string) string {
	var b strings.Builder
	for i, part := range strings.Split(page, "\n```") {
		if i%2 == 1 {
			b.WriteString(part + "\n")
		}
	}
	return b.String()
}

func TestDeploy_PageNamesRealCommandsAndFlags(t *testing.T) {
	t.Parallel()
	d := newDeployed(t)
	for _, page := range []string{"README.md", "trial.md"} {
		for _, args := range calls(fenced(d.read(page))) {
			if err := d.check(args); err != nil {
				t.Errorf("deploy/%s: %s: %v", page, strings.Join(args, " "), err)
			}
		}
	}
	if d.seen < 12 {
		t.Errorf("only %d flags were found on the page: the test reads it wrongly", d.seen)
	}
	for _, bad := range []string{"bailiwick-control init -spek f -out d", "bailiwick key creat --customer acme", "bailiwick nodes list", "bw nodes list", "bailiwick node lst", "bailiwick key create --client acme", "bailiwick-edge -http3 :443"} {
		if found := calls(bad); len(found) != 1 || d.check(found[0]) == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// Each series of the alerts is one that edges or control nodes have, each alert has an example (promtool test rules runs them), and
// what running.md calls worth waking somebody for has an alert.
func TestDeploy_AlertsNameRealSeries(t *testing.T) {
	t.Parallel()
	d := newDeployed(t)
	seriesRE := regexp.MustCompile(`bailiwick_(\w+)`)
	rules, examples := d.read("prometheus", "bailiwick.rules.yml"), d.read("prometheus", "bailiwick.rules.test.yml")
	edge, control, running := d.read("..", "docs", "metrics.md"), d.read("..", "controlplane", "admin.go"), d.read("..", "docs", "running.md")
	has := func(series string) bool {
		return strings.Contains(edge, "`bailiwick_"+series+"`") || strings.Contains(control, `"`+series+`", "`) || strings.HasSuffix(series, "_bucket") && strings.Contains(edge, "`bailiwick_"+strings.TrimSuffix(series, "_bucket")+"`")
	}
	series := map[string]bool{}
	for _, m := range seriesRE.FindAllStringSubmatch(rules, -1) {
		if series[m[1]] = true; !has(m[1]) {
			t.Errorf("the alerts read %s, which nobody has", m[0])
		}
	}
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1)
	for _, a := range alerts {
		if strings.Count(examples, "alertname: "+a[1]+"}") != 1 || strings.Count(examples, "alertname: "+a[1]+"\n") != 1 {
			t.Errorf("%s has not one example of a calm zone and one of a broken one", a[1])
		}
	}
	_, watch, _ := strings.Cut(running, "## What to watch")
	watch, _, _ = strings.Cut(watch, "\n## ")
	for line := range strings.Lines(watch) {
		for _, m := range seriesRE.FindAllStringSubmatch(line, -1) {
			if strings.HasPrefix(line, "| `") && !series[m[1]] && !slices.Contains([]string{"request_duration_seconds_bucket", "upstream_requests_waiting", "upstream_dials_failed_total", "refusals_total"}, m[1]) {
				t.Errorf("running.md says to watch %s, and no alert does", m[0])
			}
		}
	}
	if len(alerts) < 20 || len(series) < 20 || has("requests") || has("no_such_total") {
		t.Errorf("%d alerts of %d series: the test reads them wrongly", len(alerts), len(series))
	}
}

var assignRE = regexp.MustCompile(`(?ms)^(\w+)=("[^"]*"|[^\n]*)$`)

// The units are started as systemd would put their command lines together. Without a kit and a token the programs end at
// once and say so; with a flag or a value that they do not take, they say that.
func TestDeploy_UnitsStartThePrograms(t *testing.T) {
	t.Parallel()
	d := newDeployed(t)
	for _, c := range []struct{ program, env, wants string }{
		{"bailiwick-control", "control.env", "identity"},
		{"bailiwick-edge", "edge.env", "join-token"},
	} {
		unit := d.read("systemd", c.program+".service")
		_, start, ok := strings.Cut(unit, "\nExecStart=/usr/local/bin/")
		start, _, _ = strings.Cut(start, "\n")
		if !ok || !strings.HasPrefix(start, c.program+" ") {
			t.Fatalf("%s.service starts %q", c.program, start)
		}
		env := strings.ReplaceAll(d.read("systemd", c.env), "\\\n", " ")
		set := map[string]string{}
		for _, m := range assignRE.FindAllStringSubmatch(env, -1) {
			set[m[1]] = strings.Trim(m[2], `"`)
		}
		line := os.Expand(start, func(name string) string {
			if set[name] == "" {
				t.Errorf("%s.service uses %s, which %s does not set", c.program, name, c.env)
			}
			return set[name]
		})
		args := strings.Fields(strings.Replace(line, "/var/lib", t.TempDir(), 1))
		if out, err := d.program(args...); err == nil || !strings.Contains(out, c.wants) || strings.Contains(out, "Usage of") || strings.Contains(out, "flag") {
			t.Errorf("%s: %v: %s", line, err, out)
		}
		for _, comment := range regexp.MustCompile(`(?m)^# +(-.*)$`).FindAllStringSubmatch(env, -1) { // flags offered in comments
			args := append([]string{c.program}, strings.Fields(comment[1])...)
			if strings.Contains(comment[1], " are for ") { // prose
				continue
			}
			if err := d.check(args); err != nil {
				t.Errorf("%s: %v", c.env, err)
			}
		}
		// The unit must wait longer than the program takes to end itself.
		plane := map[string]string{"bailiwick-control": "controlplane", "bailiwick-edge": "dataplane"}[c.program]
		source, err := os.ReadFile(filepath.Join(d.root, plane, "cmd", c.program, "main.go"))
		if err != nil {
			t.Fatal(err)
		}
		own := regexp.MustCompile(`time\.After\((\d+) \* time\.Second\)`).FindSubmatch(source)
		waits := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)s$`).FindStringSubmatch(unit)
		if own == nil || waits == nil {
			t.Fatalf("%s: no time in which it ends: program %q, unit %q", c.program, own, waits)
		}
		mine, _ := strconv.Atoi(string(own[1]))
		units, _ := strconv.Atoi(waits[1])
		if units <= mine {
			t.Errorf("%s.service kills after %d s what ends itself after %d s", c.program, units, mine)
		}
	}
}

// The compose file is that of the example's zone: its nodes under the names that their certificates have, flags that the
// programs take, and no more rights than the units give.
func TestDeploy_ComposeIsTheExample(t *testing.T) {
	t.Parallel()
	d := newDeployed(t)
	var spec struct {
		ControlNodes []struct{ Name, Admin, Peer string } `yaml:"control_nodes"`
	}
	if err := yaml.Unmarshal([]byte(d.read("example", "installation.yaml")), &spec); err != nil {
		t.Fatal(err)
	}
	if out, err := d.program("bailiwick-control", "init", "-spec", filepath.Join(d.root, "deploy/example/installation.yaml"), "-out", filepath.Join(t.TempDir(), "installation")); err != nil {
		t.Errorf("init of the example: %v: %s", err, out)
	}
	var file struct {
		Services map[string]struct {
			Command     []string
			Image, User string
			ReadOnly    bool     `yaml:"read_only"`
			CapDrop     []string `yaml:"cap_drop"`
			SecurityOpt []string `yaml:"security_opt"`
			Grace       string   `yaml:"stop_grace_period"`
			Volumes     []string
			Environment map[string]string
			Networks    map[string]struct{ Aliases []string }
		}
	}
	if err := yaml.Unmarshal([]byte(d.read("compose", "compose.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	if len(spec.ControlNodes) != 3 || len(file.Services) != 5 {
		t.Fatalf("%d control nodes, %d services; want 3, and two edges more", len(spec.ControlNodes), len(file.Services))
	}
	for _, n := range spec.ControlNodes {
		s := file.Services[n.Name]
		host := n.Name + ".bw.internal"
		if !slices.Contains(s.Networks["zone"].Aliases, host) || n.Admin != "https://"+host+":7001" || n.Peer != host+":7101" {
			t.Errorf("%s is %s and %s in the example, %v in compose", n.Name, n.Admin, n.Peer, s.Networks)
		}
		if want := "./installation/" + n.Name + ":/state/" + n.Name; !slices.Contains(s.Volumes, want) || !slices.Contains(s.Command, "/state/"+n.Name) {
			t.Errorf("%s: volumes %v, command %v: its kit is at %s", n.Name, s.Volumes, s.Command, want)
		}
	}
	for name, s := range file.Services {
		program, found := strings.CutPrefix(s.Command[0], "/usr/local/bin/")
		if !found {
			t.Errorf("%s: an image from scratch has no path to look %q up in", name, s.Command[0])
		}
		if err := d.check(append([]string{program}, s.Command[1:]...)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		grace, err := time.ParseDuration(s.Grace)
		if err != nil || grace <= 45*time.Second || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.SecurityOpt) != 1 || s.User == "" || s.Image == "" {
			t.Errorf("%s is not hardened, or not given the time to end: %+v", name, s)
		}
		for variable := range s.Environment {
			if out, err := d.program(program, "-help"); err != nil || !strings.Contains(out, "("+variable+")") {
				t.Errorf("%s: %s does not read %s", name, program, variable)
			}
		}
	}
	if d.seen < 25 {
		t.Errorf("only %d flags were found: the test reads the file wrongly", d.seen)
	}
}
