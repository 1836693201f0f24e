//! What the firmware application runs on: trussed with RSA, PINs and encrypted files, without threads, and with the
//! operating system's randomness (the virtual platform that trussed brings has a constant seed: equal keys in all cards).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, mpsc};

use generic_array::typenum::{U8, U512};
use littlefs2::driver::Storage;
use piv_authenticator::{Authenticator, Options};
use rand_chacha03::ChaCha8Rng;
use rand_chacha03::rand_core::SeedableRng;
use trussed::ClientImplementation;
use trussed::backend::{Backend as _, BackendId};
use trussed::pipe::{ServiceEndpoint, TrussedChannel};
use trussed::platform::Platform as _;
use trussed::serde_extensions::{ExtensionDispatch, ExtensionId, ExtensionImpl};
use trussed::service::{Service, ServiceResources};
use trussed::types::{Context, CoreContext};
use trussed::virt::{StorageConfig, Store, StoreConfig, UserInterface};
use trussed_auth::AuthExtension;
use trussed_auth_backend::{AuthBackend, AuthContext, FilesystemLayout};
use trussed_chunked::ChunkedExtension;
use trussed_core::Error;
use trussed_core::api::{Reply, Request, reply, request};
use trussed_core::types::Location;
use trussed_hpke::HpkeExtension;
use trussed_rsa_alloc::SoftwareRsa;
use trussed_staging::{StagingBackend, StagingContext};
use trussed_wrap_key_to_file::WrapKeyToFileExtension;

use super::Flash;
use crate::apdu::{Command, sw};

/// Bytes of one flash block.
pub const BLOCK: usize = 512;
const BLOCKS: usize = 256;
/// Bytes of each flash memory.
pub const FLASH: usize = BLOCK * BLOCKS;

impl Storage for Flash {
    const READ_SIZE: usize = 16;
    const WRITE_SIZE: usize = 16;
    const BLOCK_SIZE: usize = BLOCK;
    const BLOCK_COUNT: usize = BLOCKS;
    type CACHE_SIZE = U512;
    type LOOKAHEAD_SIZE = U8;

    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> littlefs2::io::Result<usize> {
        let image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        let part = image.get(offset..offset + buffer.len()).ok_or(littlefs2::io::Error::IO)?;
        buffer.copy_from_slice(part);
        Ok(buffer.len())
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> littlefs2::io::Result<usize> {
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        let part = image.get_mut(offset..offset + data.len()).ok_or(littlefs2::io::Error::IO)?;
        part.copy_from_slice(data);
        self.dirty.store(true, Ordering::Release);
        Ok(data.len())
    }

    fn erase(&mut self, offset: usize, length: usize) -> littlefs2::io::Result<usize> {
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        image.get_mut(offset..offset + length).ok_or(littlefs2::io::Error::IO)?.fill(0xFF);
        self.dirty.store(true, Ordering::Release);
        Ok(length)
    }
}

struct Platform<'a> {
    rng: ChaCha8Rng,
    store: Store<'a>,
    ui: UserInterface,
}

impl<'a> trussed::Platform for Platform<'a> {
    type R = ChaCha8Rng;
    type S = Store<'a>;
    type UI = UserInterface;

    fn user_interface(&mut self) -> &mut UserInterface {
        &mut self.ui
    }

    fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    fn store(&self) -> Store<'a> {
        self.store
    }
}

enum Backend {
    Rsa,
    Auth,
    Staging,
}

const BACKENDS: &[BackendId<Backend>] = &[
    BackendId::Custom(Backend::Rsa),
    BackendId::Custom(Backend::Auth),
    BackendId::Custom(Backend::Staging),
    BackendId::Core,
];

#[derive(Clone, Copy)]
enum Extension {
    Auth,
    Chunked,
    WrapKeyToFile,
    Hpke,
}

impl From<Extension> for u8 {
    fn from(extension: Extension) -> Self {
        extension as Self
    }
}

impl TryFrom<u8> for Extension {
    type Error = Error;
    fn try_from(id: u8) -> Result<Self, Error> {
        [Self::Auth, Self::Chunked, Self::WrapKeyToFile, Self::Hpke]
            .into_iter()
            .find(|extension| u8::from(*extension) == id)
            .ok_or(Error::FunctionNotSupported)
    }
}

struct Dispatch {
    auth: AuthBackend,
    staging: StagingBackend,
}

#[derive(Default)]
struct Contexts {
    auth: AuthContext,
    staging: StagingContext,
}

impl ExtensionId<AuthExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::Auth;
}

impl ExtensionId<ChunkedExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::Chunked;
}

impl ExtensionId<WrapKeyToFileExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::WrapKeyToFile;
}

impl ExtensionId<HpkeExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::Hpke;
}

impl ExtensionDispatch for Dispatch {
    type BackendId = Backend;
    type Context = Contexts;
    type ExtensionId = Extension;

    fn core_request<P: trussed::Platform>(
        &mut self,
        backend: &Backend,
        context: &mut Context<Contexts>,
        request: &Request,
        resources: &mut ServiceResources<P>,
    ) -> Result<Reply, Error> {
        let Context { core, backends, .. } = context;
        match backend {
            Backend::Rsa => SoftwareRsa.request(core, &mut (), request, resources),
            Backend::Auth => self.auth.request(core, &mut backends.auth, request, resources),
            Backend::Staging => self.staging.request(core, &mut backends.staging, request, resources),
        }
    }

    fn extension_request<P: trussed::Platform>(
        &mut self,
        backend: &Backend,
        extension: &Extension,
        context: &mut Context<Contexts>,
        request: &request::SerdeExtension,
        resources: &mut ServiceResources<P>,
    ) -> Result<reply::SerdeExtension, Error> {
        let Context { core, backends, .. } = context;
        let staging = &mut backends.staging;
        match (backend, extension) {
            (Backend::Auth, Extension::Auth) => ExtensionImpl::<AuthExtension>::extension_request_serialized(
                &mut self.auth,
                core,
                &mut backends.auth,
                request,
                resources,
            ),
            (Backend::Staging, Extension::Chunked) => ExtensionImpl::<ChunkedExtension>::extension_request_serialized(
                &mut self.staging,
                core,
                staging,
                request,
                resources,
            ),
            (Backend::Staging, Extension::WrapKeyToFile) => {
                ExtensionImpl::<WrapKeyToFileExtension>::extension_request_serialized(
                    &mut self.staging,
                    core,
                    staging,
                    request,
                    resources,
                )
            }
            (Backend::Staging, Extension::Hpke) => ExtensionImpl::<HpkeExtension>::extension_request_serialized(
                &mut self.staging,
                core,
                staging,
                request,
                resources,
            ),
            _ => Err(Error::RequestNotAvailable),
        }
    }
}

/// Runs the service where it is called, instead of waking a thread.
struct Direct<'a>(Rc<RefCell<Parts<'a>>>);

struct Parts<'a> {
    service: Service<Platform<'a>, Dispatch>,
    endpoints: [ServiceEndpoint<'a, Backend, Contexts>; 1],
}

impl trussed::platform::Syscall for Direct<'_> {
    fn syscall(&mut self) {
        let Parts { service, endpoints } = &mut *self.0.borrow_mut();
        service.process(endpoints);
    }
}

/// Runs the application on these memories until no more commands come.
pub fn run(
    internal: Flash,
    external: Flash,
    commands: &mpsc::Receiver<Command>,
    answers: &mpsc::Sender<(Vec<u8>, u16)>,
) {
    let storage = |flash: Flash| {
        let mut image = flash.image.lock().unwrap_or_else(PoisonError::into_inner);
        let format = image.is_empty();
        image.resize(FLASH, 0xFF);
        drop(image);
        StorageConfig { storage: Box::new(flash), format }
    };
    let mut config =
        StoreConfig { internal: storage(internal), external: storage(external), volatile: StorageConfig::ram() };
    config.with_store(|store| {
        let mut seed = [0; 32];
        if getrandom::fill(&mut seed).is_err() {
            return;
        }
        let mut platform = Platform { rng: ChaCha8Rng::from_seed(seed), store, ui: UserInterface::new() };
        // The application never waits for a touch here.
        let _ = platform.user_interface();
        let dispatch = Dispatch {
            auth: AuthBackend::new(Location::Internal, FilesystemLayout::V0),
            staging: StagingBackend::new(),
        };
        let channel = TrussedChannel::new();
        let Some((requester, responder)) = channel.split() else { return };
        let context = CoreContext::new(littlefs2_core::path!("piv").into());
        let endpoints = [ServiceEndpoint::new(responder, context, BACKENDS)];
        let parts = Parts { service: Service::with_dispatch(platform, dispatch), endpoints };
        let client = ClientImplementation::<_, Dispatch>::new(requester, Direct(Rc::new(RefCell::new(parts))), None);
        let mut application = Authenticator::new(client, Options::default());
        for command in commands {
            if answers.send(answer(&mut application, &command)).is_err() {
                return;
            }
        }
    });
}

fn answer<C: piv_authenticator::Client>(application: &mut Authenticator<C>, command: &Command) -> (Vec<u8>, u16) {
    let mut apdu = vec![command.cla, command.ins, command.p1, command.p2];
    if !command.data.is_empty() {
        apdu.push(0);
        apdu.extend_from_slice(&(command.data.len() as u16).to_be_bytes());
        apdu.extend_from_slice(&command.data);
    }
    let Ok(view) = iso7816::command::CommandView::try_from(apdu.as_slice()) else { return (Vec::new(), sw::LENGTH) };
    let mut reply = heapless::Vec::<u8, 4096>::new();
    match application.respond(view, reply.as_mut_view()) {
        Ok(()) => (reply.to_vec(), sw::OK),
        Err(status) => (Vec::new(), status.into()),
    }
}
