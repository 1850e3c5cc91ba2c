package hostcgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
)

// What systemd is called on a bus, and the errors of it that are none here (org.freedesktop.systemd1(5)).
const (
	systemdName      = "org.freedesktop.systemd1"
	systemdObject    = "/org/freedesktop/systemd1"
	systemdManager   = systemdName + ".Manager"
	unitExists       = systemdName + ".UnitExists"
	noSuchUnit       = systemdName + ".NoSuchUnit"
	jobRemoved       = "JobRemoved"
	privateBus       = "unix:path=/run/systemd/private" // systemd itself, for root
	systemBus        = "unix:path=/run/dbus/system_bus_socket"
	systemBusEnv     = "DBUS_SYSTEM_BUS_ADDRESS"
	sessionBusEnv    = "DBUS_SESSION_BUS_ADDRESS"
	runtimeDirEnv    = "XDG_RUNTIME_DIR"
	unlimited        = ^uint64(0)
	microsPerSecond  = 1_000_000
	microsPerPercent = microsPerSecond / 100
)

// managerWait bounds a conversation with systemd.
const managerWait = 20 * time.Second

// manager is a connection to systemd: the machine's or, for an ordinary user, that user's.
type manager struct {
	conn   *dbus.Conn
	object dbus.BusObject
	jobs   chan *dbus.Signal // the ends of jobs
	root   string            // systemd's own control group, which all others are below
}

// property is one of a unit's, as it goes over the bus.
type property struct {
	Name  string
	Value dbus.Variant
}

// auxiliary is a further unit of a call; none is ever given.
type auxiliary struct {
	Name       string
	Properties []property
}

// withManager calls f with a connection to systemd, and bounds it.
func withManager(f func(context.Context, *manager) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), managerWait)
	defer cancel()
	conn, bus, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	m := &manager{conn: conn, object: conn.Object(systemdName, systemdObject), jobs: make(chan *dbus.Signal, 64)}
	conn.Signal(m.jobs)
	if bus { // else systemd itself sends what is wanted
		err = conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(systemdManager), dbus.WithMatchMember(jobRemoved))
		if err != nil {
			return fmt.Errorf("listen to systemd: %w", err)
		}
	}
	root, err := m.object.GetProperty(systemdManager + ".ControlGroup")
	if err != nil {
		return fmt.Errorf("ask systemd: %w", err)
	}
	m.root, _ = root.Value().(string) // empty for the whole machine's
	return f(ctx, m)
}

// connect connects to the bus that systemd is on or, where there is none for root, to systemd itself.
func connect(ctx context.Context) (conn *dbus.Conn, bus bool, err error) {
	uid := hostUID()
	auth := dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(uid)))
	if uid != 0 {
		address := os.Getenv(sessionBusEnv)
		if dir := os.Getenv(runtimeDirEnv); address == "" && dir != "" {
			address = "unix:path=" + filepath.Join(dir, "bus")
		}
		if address == "" {
			return nil, false, fmt.Errorf("neither %s nor %s says where the user's bus is", sessionBusEnv, runtimeDirEnv)
		}
		conn, err = dbus.Connect(address, dbus.WithContext(ctx), auth)
		return conn, true, err
	}
	address := systemBus
	if set := os.Getenv(systemBusEnv); set != "" {
		address = set
	}
	if conn, err = dbus.Connect(address, dbus.WithContext(ctx), auth); err == nil {
		return conn, true, nil
	}
	private, direct := dbus.Dial(privateBus, dbus.WithContext(ctx), auth)
	if direct == nil {
		direct = private.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))})
	}
	if direct != nil {
		if private != nil {
			private.Close()
		}
		return nil, false, errors.Join(err, direct)
	}
	return private, false, nil
}

// hostUID is the user id that this process has on the host, where it is root of a user namespace.
func hostUID() int {
	data, err := os.ReadFile("/proc/self/uid_map") // user_namespaces(7): inside, outside, count
	if err != nil {
		return os.Geteuid()
	}
	var inside, outside, count int
	if n, err := fmt.Sscan(string(data), &inside, &outside, &count); n != 3 || err != nil || os.Geteuid() < inside || os.Geteuid()-inside >= count {
		return os.Geteuid()
	}
	return outside + os.Geteuid() - inside
}

// path is the scope's control group.
func (m *manager) path(s scope) string { return filepath.Join("/", m.root, s.group()) }

// start makes a scope of processes. One of that name that has failed before is forgotten.
func (m *manager) start(ctx context.Context, s scope, pids []int) error {
	ids := make([]uint32, len(pids))
	for i, pid := range pids {
		ids[i] = uint32(pid)
	}
	properties := []property{
		{"Description", dbus.MakeVariant("virtual machine of husk")},
		{"Slice", dbus.MakeVariant(s.slice)},
		{"PIDs", dbus.MakeVariant(ids)},
		{"Delegate", dbus.MakeVariant(true)}, // systemd leaves alone what others set there
		{"DefaultDependencies", dbus.MakeVariant(false)},
	}
	for _, controller := range []string{"CPU", "Memory", "IO", "Tasks"} {
		properties = append(properties, property{controller + "Accounting", dbus.MakeVariant(true)})
	}
	call := func() error {
		return m.job(ctx, "StartTransientUnit", s.unit, "replace", properties, []auxiliary{})
	}
	err := call()
	if is(err, unitExists) {
		m.forget(ctx, s)
		err = call()
	}
	if err != nil {
		return fmt.Errorf("have systemd make %s: %w", s.unit, err)
	}
	return nil
}

// stop ends a scope, with what is still in it. One that does not exist is none.
func (m *manager) stop(ctx context.Context, s scope) error {
	if err := m.job(ctx, "StopUnit", s.unit, "replace"); err != nil && !is(err, noSuchUnit) {
		return fmt.Errorf("have systemd remove %s: %w", s.unit, err)
	}
	m.forget(ctx, s)
	return nil
}

// forget has systemd forget a scope that failed: one that did not fail is not there, which is as well.
func (m *manager) forget(ctx context.Context, s scope) {
	_ = m.object.CallWithContext(ctx, systemdManager+".ResetFailedUnit", 0, s.unit)
}

// set sets properties of a scope, for as long as it lives.
func (m *manager) set(ctx context.Context, s scope, properties []property) error {
	if err := m.object.CallWithContext(ctx, systemdManager+".SetUnitProperties", 0, s.unit, true, properties).Err; err != nil {
		return fmt.Errorf("have systemd limit %s: %w", s.unit, err)
	}
	return nil
}

// job calls a method that begins a job, and waits for its end.
func (m *manager) job(ctx context.Context, method string, args ...any) error {
	var path dbus.ObjectPath
	if err := m.object.CallWithContext(ctx, systemdManager+"."+method, 0, args...).Store(&path); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case signal, open := <-m.jobs:
			if !open {
				return errors.New("the connection is lost")
			}
			var id uint32
			var job dbus.ObjectPath
			var unit, result string
			if signal.Name != systemdManager+"."+jobRemoved || dbus.Store(signal.Body, &id, &job, &unit, &result) != nil || job != path {
				continue
			}
			if result != "done" {
				return fmt.Errorf("the job ended as %q", result)
			}
			return nil
		}
	}
}

// is tells whether err is one of the bus' with that name.
func is(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}
